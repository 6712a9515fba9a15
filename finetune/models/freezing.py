"""Stages of a backbone, which of them are frozen, and what that means for their modules.

A frozen stage takes no gradient, and its modules stay in eval mode: BatchNorm statistics do
not move and dropout is off, so its features are those of the weights that it came with.
``requires_grad=False`` alone does not give that. ``nn.Module.train`` undoes the mode, so
whoever overrides it calls `apply_frozen_mode` again::

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            apply_frozen_mode(self.classifier.backbone, self.stages, self.num_frozen)
        return self

BatchNorm has two parts: weights and biases, which take gradients, and statistics, which follow
the batches. `FreezePolicy` and the number of stages decide about the first, `BatchNormPolicy`
about the second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never, cast

from timm.models._manipulate import group_with_matcher
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import ConfigError

FreezePolicy = Literal["probe_then_finetune", "none", "backbone", "gradual", "batchnorm_only"]
BatchNormPolicy = Literal["frozen", "train"]


@dataclass(frozen=True, slots=True)
class Freezing:
    """What of a backbone learns, and when.

    Attributes:
        policy: see `open_stages`; `batchnorm_only` opens the BatchNorm layers alone.
        epochs_per_stage: used by `gradual`, >= 1.
        stages: this many stages, from the input on, never learn; >= 0.
        batchnorm: `frozen` keeps the statistics that the backbone came with, in open stages too;
            its weights and biases learn.
    """

    policy: FreezePolicy
    epochs_per_stage: int = 1
    stages: int = 0
    batchnorm: BatchNormPolicy = "train"

    @property
    def only_batchnorm(self) -> bool:
        """Whether nothing but BatchNorm learns in the backbone."""
        return self.policy == "batchnorm_only"


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a backbone that is frozen, or learns at one rate, as a whole.

    Attributes:
        name: `stem` for the first, else where its parameters lie: `layer1`, `blocks.3`.
        parameter_names: as in ``backbone.named_parameters()``.
        module_names: as in ``backbone.named_modules()``; a module with parts in several
            stages belongs to the last of them, so it stays in train mode until all are frozen.
    """

    name: str
    parameter_names: tuple[str, ...]
    module_names: tuple[str, ...]


def backbone_stages(backbone: nn.Module) -> tuple[Stage, ...]:
    """Split a backbone into stages, from input to output.

    The split is timm's own (``group_matcher(coarse=True)``): the stem, then the stages of a
    ConvNet or the blocks of a transformer. A group that holds nothing but norm weights and
    biases (a final norm) joins the stage before it. A backbone for which timm offers no such
    split is one stage. Every parameter and every module is in exactly one stage.
    """
    parameters = dict(backbone.named_parameters())
    bare_modules = [
        name for name, module in backbone.named_modules() if next(module.parameters(), None) is None
    ]
    groups = _group(backbone, list(parameters))
    index_of: dict[str, int] = {}
    index = -1
    for group in groups:
        # A final norm would be opened alone for epochs by `gradual`, and learns next to nothing.
        if index < 0 or any(parameters[name].ndim > 1 for name in group):
            index += 1
        index_of |= dict.fromkeys(group, index)
    module_index = _assign_modules(backbone, index_of, bare_modules)
    names = _stage_names(index_of, index + 1)
    return tuple(
        Stage(
            name=names[i],
            parameter_names=tuple(name for name in parameters if index_of[name] == i),
            module_names=tuple(name for name, j in module_index.items() if j == i),
        )
        for i in range(index + 1)
    )


def stage_indices(stages: Sequence[Stage]) -> dict[str, int]:
    """Give the stage of each parameter by name; 0 is nearest to the input."""
    return {name: i for i, stage in enumerate(stages) for name in stage.parameter_names}


def check_freezing(backbone: nn.Module, stages: Sequence[Stage], freezing: Freezing) -> None:
    """Refuse what would leave nothing to learn.

    Raises:
        ConfigError: every stage would stay frozen, or there is no BatchNorm to open.
    """
    if freezing.stages >= len(stages) and freezing.policy != "backbone":
        names = ", ".join(stage.name for stage in stages)
        raise ConfigError(
            f"freeze.stages: got {freezing.stages}, but the backbone has {len(stages)} stages "
            f"({names}), so nothing of it would learn; use at most {len(stages) - 1}, or "
            "freeze=backbone."
        )
    if freezing.only_batchnorm and not batchnorm_parameters(backbone):
        raise ConfigError(
            "freeze.policy: got batchnorm_only, but this backbone has no BatchNorm with weights; "
            "use freeze=none, or another model."
        )


def open_stages(freezing: Freezing, *, epoch: int, num_stages: int) -> int:
    """Count the stages that learn in ``epoch``, from the output side; the head always learns.

    `backbone` opens none ever, `gradual` none for the first ``epochs_per_stage`` epochs and then
    one more every ``epochs_per_stage``, the other policies all from the start. The first
    ``freezing.stages`` never open.

    Args:
        freezing: the policy.
        epoch: from 0.
        num_stages: stages of the backbone, >= 0.

    Returns:
        A number in [0, num_stages]; ``num_stages`` minus it is what `set_frozen` takes.

    Raises:
        ConfigError: ``epochs_per_stage`` is below 1.

    Source: Howard and Ruder 2018 (ULMFiT), section 3.3, gradual unfreezing.
    """
    if freezing.epochs_per_stage < 1:
        raise ConfigError(
            f"freeze.epochs_per_stage: got {freezing.epochs_per_stage}, expected an integer >= 1."
        )
    most = max(0, num_stages - freezing.stages)
    match freezing.policy:
        case "none" | "probe_then_finetune" | "batchnorm_only":
            return most
        case "backbone":
            return 0
        case "gradual":
            return min(most, epoch // freezing.epochs_per_stage)
        case _:
            assert_never(freezing.policy)


def batchnorm_parameters(backbone: nn.Module) -> set[str]:
    """Name the weights and biases of all BatchNorm layers, as in ``named_parameters()``."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in backbone.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }


def has_batchnorm(module: nn.Module) -> bool:
    """Tell whether a network normalises over batches in training."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def set_frozen(
    backbone: nn.Module,
    stages: Sequence[Stage],
    num_frozen: int,
    *,
    only_batchnorm: bool = False,
) -> None:
    """Let the first ``num_frozen`` stages take no gradient, and all others take one.

    Args:
        backbone: of which the stages are.
        stages: from `backbone_stages`.
        num_frozen: in [0, len(stages)].
        only_batchnorm: of the others, the BatchNorm layers alone take one.

    Raises:
        ValueError: ``num_frozen`` lies outside [0, len(stages)].
    """
    _check_num_frozen(stages, num_frozen)
    norms = batchnorm_parameters(backbone) if only_batchnorm else set()
    for i, stage in enumerate(stages):
        for name in stage.parameter_names:
            parameter = backbone.get_parameter(name)
            learns = i >= num_frozen and (not only_batchnorm or name in norms)
            parameter.requires_grad_(learns)
            if not learns:
                # An optimizer would go on with weight decay and momentum for a stale gradient.
                parameter.grad = None


def apply_frozen_mode(
    backbone: nn.Module,
    stages: Sequence[Stage],
    num_frozen: int,
    *,
    batchnorm: BatchNormPolicy = "train",
) -> None:
    """Put the modules of the first ``num_frozen`` stages in eval mode, all others in train mode.

    Call it after each ``train()`` of the model; it holds until the next one.

    Args:
        backbone: of which the stages are.
        stages: from `backbone_stages`.
        num_frozen: in [0, len(stages)].
        batchnorm: `frozen` puts every BatchNorm in eval mode, so that it normalises by the
            statistics that it came with.

    Raises:
        ValueError: ``num_frozen`` lies outside [0, len(stages)].
    """
    _check_num_frozen(stages, num_frozen)
    modules = dict(backbone.named_modules())
    for i, stage in enumerate(stages):
        for name in stage.module_names:
            module = modules[name]
            is_kept = batchnorm == "frozen" and isinstance(module, _BatchNorm)
            # Not .train(): it would reach into children, which may be of other stages.
            module.training = i >= num_frozen and not is_kept


def _check_num_frozen(stages: Sequence[Stage], num_frozen: int) -> None:
    if not 0 <= num_frozen <= len(stages):
        raise ValueError(f"num_frozen: got {num_frozen}, expected 0 to {len(stages)}.")


def _group(backbone: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Group dotted names by timm's matcher, from input to output."""
    if not hasattr(backbone, "group_matcher"):
        return [list(names)]
    try:
        matcher = cast(Any, backbone).group_matcher(coarse=True)
    except AssertionError:  # timm's rdnet offers blocks but no stages
        return [list(names)]
    groups = group_with_matcher(((name, None) for name in names), matcher)
    grouped = [list(groups[i]) for i in sorted(groups)]
    # A matcher may answer None, and timm then leaves the name out.
    left_out = set(names).difference(*grouped)
    return grouped + ([[name for name in names if name in left_out]] if left_out else [])


def _assign_modules(
    backbone: nn.Module, index_of: Mapping[str, int], bare_modules: Sequence[str]
) -> dict[str, int]:
    """Give every module its stage, those without parameters (dropout, pooling) included.

    A module with parameters takes the last stage of any of them. One without takes the stage
    that timm's matcher puts it in; where the matcher does not know it, the stage of the module
    registered before it, which timm's models call before it too.
    """
    matched: dict[str, int] = {}
    for group in _group(backbone, ["", *index_of, *bare_modules]):
        known = [index_of[name] for name in group if name in index_of]
        # Names that no pattern knows fall into one group: the one with the empty name.
        if known and "" not in group:
            matched |= dict.fromkeys(group, max(known))
    # By identity: a shared module shows its parameters under a second name.
    index_by_id = {id(backbone.get_parameter(name)): i for name, i in index_of.items()}
    assigned: dict[str, int] = {}
    previous = 0
    for name, module in backbone.named_modules():
        inner = {index_by_id[id(parameter)] for parameter in module.parameters()}
        assigned[name] = max(inner) if inner else matched.get(name, previous)
        if len(inner) < 2:
            previous = assigned[name]
    return assigned


def _stage_names(index_of: Mapping[str, int], num_stages: int) -> list[str]:
    """Name each stage by the shortest dotted prefix of its first parameter that is its own."""
    if num_stages == 1:
        return ["backbone"]
    names = ["stem"]
    for i in range(1, num_stages):
        parts = next(name for name, j in index_of.items() if j == i).split(".")
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            owners = {j for name, j in index_of.items() if f"{name}.".startswith(f"{prefix}.")}
            if owners == {i}:
                break
        names.append(prefix)
    return names
