"""Parameter groups, optimizers and learning rate schedules; pure functions first."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, assert_never

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from finetune.errors import ConfigError, did_you_mean

SchedulerName = Literal["cosine", "onecycle", "constant"]


def stage_rates(
    num_stages: int, *, lr: float, backbone_lr_factor: float, layer_decay: float
) -> list[float]:
    """Return each backbone stage's learning rate, smaller towards the input.

    Stage ``i`` of ``n`` (0 = stem) learns at ``lr * backbone_lr_factor * layer_decay ** (n-1-i)``.

    Source: Clark et al. 2020 (ELECTRA), appendix B; for ConvNets: Liu et al. 2022.
    """
    top = lr * backbone_lr_factor
    return [top * layer_decay ** (num_stages - 1 - index) for index in range(num_stages)]


def parameter_groups(
    parts: Mapping[str, Sequence[nn.Parameter]],
    rates: Mapping[str, float],
    *,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Make optimizer groups: per part its rate, and no decay on norms and biases.

    Args:
        parts: parameters by name of the part, ordered from input to output.
        rates: learning rate of each part.
        weight_decay: for the weights of at least two dimensions; the others get 0
            (He et al. 2019, "Bag of Tricks", section 3.1).

    Returns:
        Groups with ``name``, ``params``, ``lr``, ``weight_decay``; empty ones left out.
    """
    groups = []
    for name, parameters in parts.items():
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        for params, decay, label in (
            (weights, weight_decay, name),
            (others, 0.0, f"{name}, norms and biases"),
        ):
            if params:
                groups.append(
                    {"name": label, "params": params, "lr": rates[name], "weight_decay": decay}
                )
    return groups


def check_optimizer(name: str) -> None:
    """Check that timm's factory knows the optimizer.

    Raises:
        ConfigError: it does not (the nearest name is given), or the optimizer needs what this
            machine or this training lacks.
    """
    known = [str(option) for option in list_optimizers()]
    if name.lower() not in known:
        raise ConfigError(
            f"optimizer.name: got `{name}`, expected adamw, sgd, or another of timm's "
            f"{len(known)} optimizers.{did_you_mean(name, known)}"
        )
    if get_optimizer_info(name).second_order:
        raise ConfigError(
            f"optimizer.name: got `{name}`, which needs second derivatives; expected an optimizer "
            "of first order, such as adamw."
        )
    try:
        create_optimizer_v2([nn.Parameter(torch.zeros(2, 2))], opt=name.lower(), lr=1.0)
    except (AssertionError, ImportError) as error:  # timm's bnb… and fused… ask for CUDA so
        raise ConfigError(
            f"optimizer.name: got `{name}`, which cannot be used here: {error}."
        ) from error


def create_optimizer(
    name: str, groups: list[dict[str, Any]], *, lr: float, momentum: float
) -> torch.optim.Optimizer:
    """Make any optimizer that timm knows; ``sgd`` has Nesterov momentum.

    Raises:
        ConfigError: timm does not know ``name``.
    """
    check_optimizer(name)
    info = get_optimizer_info(name)
    settings: dict[str, Any] = {}
    if momentum == 0 and info.has_momentum and (info.defaults or {}).get("nesterov"):
        settings["nesterov"] = False  # torch refuses Nesterov's momentum of 0
    optimizer = create_optimizer_v2(
        groups, opt=name.lower(), lr=lr, momentum=momentum, filter_bias_and_bn=False, **settings
    )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer.name: `{name}` is no torch optimizer.")
    return optimizer


def cosine_factor(step: int, total: int, *, warmup: int, final: float) -> float:
    """Linear from near 0 to 1 over ``warmup`` steps, then half a cosine to ``final``.

    Source: Loshchilov & Hutter 2017 (SGDR) without restarts; warm-up: Goyal et al. 2017.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def onecycle_factor(
    step: int, total: int, *, warmup_fraction: float, initial: float, final: float
) -> float:
    """Half a cosine from ``initial`` up to 1, then another down to ``final``.

    Source: Smith & Topin 2018; the same curve as torch's ``OneCycleLR``.
    """
    peak = warmup_fraction * total - 1
    if step <= peak:
        start, end, progress = initial, 1.0, step / max(1.0, peak)
    else:
        start, end, progress = 1.0, final, min(1.0, (step - peak) / (total - 1 - peak))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def constant_factor(step: int, *, warmup: int) -> float:
    """Linear from near 0 to 1 over ``warmup`` steps, then 1."""
    return min(1.0, (step + 1) / (warmup + 1))


def create_scheduler(
    optimizer: torch.optim.Optimizer,
    name: SchedulerName,
    *,
    total_steps: int,
    total_epochs: int,
    settings: Mapping[str, float],
) -> LambdaLR:
    """Make a schedule that multiplies every group's rate, step by step.

    Args:
        optimizer: with one rate per group, which is the peak of its curve.
        name: shape of the curve.
        total_steps: optimizer steps of the whole training.
        total_epochs: passes over the data of the whole training.
        settings: ``warmup_epochs``, ``final_lr_factor``, ``warmup_fraction``,
            ``initial_lr_factor``, as the shape needs them.
    """
    warmup = round(settings.get("warmup_epochs", 0) * total_steps / total_epochs)
    factor: Callable[[int], float]
    match name:
        case "cosine":
            final = settings["final_lr_factor"]

            def factor(step: int) -> float:
                return cosine_factor(step, total_steps, warmup=warmup, final=final)

        case "onecycle":
            fraction, initial = settings["warmup_fraction"], settings["initial_lr_factor"]
            last = settings["final_lr_factor"]

            def factor(step: int) -> float:
                return onecycle_factor(
                    step, total_steps, warmup_fraction=fraction, initial=initial, final=last
                )

        case "constant":

            def factor(step: int) -> float:
                return constant_factor(step, warmup=warmup)

        case _:
            assert_never(name)
    return LambdaLR(optimizer, factor)
