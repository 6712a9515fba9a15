"""A backbone cut in two where its frozen stages end, so that their answers can be kept.

Shapes: ``B`` images of ``S`` pixels a side, ``F`` features; ``A...`` is the shape of one
activation at the boundary, which depends on the backbone.

The cut follows the modules. In the *suffix*, every frozen module is an identity, so that what
goes in reaches the first open module as it is; in the *prefix*, every open module ends the
computation with what it was given. This holds for a backbone that calls its stages one after
another with one tensor between them, and fails for others: a skip across the boundary, say. No
rule tells them apart, so each cut is tried out before it is handed over.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.models.freezing import Stage, apply_frozen_mode

# Their forward, where they have one, is that of their children: these may be exchanged alone,
# for backbones that loop over them.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SEED = 0


@dataclass(frozen=True, slots=True)
class Split:
    """Two modules made of a backbone's own: what trains one of them trains the backbone.

    Attributes:
        prefix: images ``[B, 3, S, S]`` to activations ``[B, A...]``; only frozen parameters. Its
            modules want eval mode.
        suffix: activations ``[B, A...]`` to pooled features ``[B, F]``; all open parameters.
            Each part is in train or eval mode as the backbone's is, so set it there.
    """

    prefix: nn.Module
    suffix: nn.Module


@dataclass(frozen=True, slots=True)
class NoSplit:
    """Why a backbone cannot be cut there, in words without a full stop."""

    reason: str


def split_backbone(
    backbone: nn.Module, stages: Sequence[Stage], num_frozen: int, *, example: Tensor
) -> Split | NoSplit:
    """Cut a backbone behind its first ``num_frozen`` stages, where that changes nothing.

    The cut is tried on noise with a copy of the backbone whose open parameters have moved (a
    gate that starts at zero would hide a difference), in eval mode and in the mode of training,
    and then on ``example`` with the backbone itself, in eval mode. Everything must be equal to
    the last bit, or there is no cut. The backbone stays as it was, its modes too.

    Cut after anything that puts other modules into the backbone, such as
    ``SyncBatchNorm.convert_sync_batchnorm``; moving it to a device or another memory format is
    fine later too.

    Args:
        backbone: ``[B, 3, S, S]`` to ``[B, F]``.
        stages: from `finetune.models.freezing.backbone_stages`.
        num_frozen: in [0, len(stages)]; with 0 there is nothing to cut off.
        example: ``[B, 3, S, S]`` float32, as training will give it, on the backbone's device.

    Raises:
        ValueError: ``num_frozen`` lies outside [0, len(stages)].
    """
    if not 0 <= num_frozen <= len(stages):
        raise ValueError(f"num_frozen: got {num_frozen}, expected 0 to {len(stages)}.")
    if num_frozen == 0:
        return NoSplit("no stage is frozen")
    reason = _find_loose_parameter(backbone, stages, num_frozen)
    if reason is not None:
        return NoSplit(reason)
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        _try_on_copy(backbone, stages, num_frozen, example)
        split = _cut(backbone, stages, num_frozen)
        backbone.eval()
        _check_equal(backbone, split, example, "eval")
    except Exception as error:  # noqa: BLE001 - a backbone called in an odd way can raise any
        return NoSplit((str(error).splitlines() or [type(error).__name__])[0])
    finally:
        for module, was_training in modes:
            module.training = was_training
    return split


class _Reached(Exception):  # noqa: N818 - no error: it carries the answer
    """An open module was called."""

    def __init__(self, activation: Tensor) -> None:
        super().__init__("an open module was called")
        self.activation = activation


class _Stop(nn.Module):
    """Stands for an open module in the prefix."""

    def forward(self, *inputs: object, **named: object) -> Tensor:
        if len(inputs) != 1 or named or not isinstance(inputs[0], Tensor):
            raise TypeError("the first open module takes more than one tensor")
        raise _Reached(inputs[0])


class _Prefix(nn.Module):
    """Run the frozen modules, and no other."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        """Give activations ``[B, A...]`` for images ``[B, 3, S, S]``."""
        try:
            features: Tensor = self.body(images)
        except _Reached as reached:
            return reached.activation
        return features  # nothing is open


class _Suffix(nn.Module):
    """Run the open modules, and no other."""

    def __init__(self, body: nn.Module, twins: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.body = body
        self._twins = tuple(twins)  # in a tuple: no submodules, or the frozen ones would be too

    def forward(self, activations: Tensor) -> Tensor:
        """Give features ``[B, F]`` for activations ``[B, A...]``."""
        for original, twin in self._twins:
            twin.training = original.training
        features: Tensor = self.body(activations)
        return features


def _cut(backbone: nn.Module, stages: Sequence[Stage], num_frozen: int) -> Split:
    frozen = _frozen_ids(backbone, stages, num_frozen)
    before: list[tuple[nn.Module, nn.Module]] = []
    twins: list[tuple[nn.Module, nn.Module]] = []
    prefix = _exchange(backbone, frozen, are_frozen=False, stand_in=_Stop, twins=before)
    suffix = _exchange(backbone, frozen, are_frozen=True, stand_in=nn.Identity, twins=twins)
    for _, twin in before:
        twin.training = False  # what is random between the parts is left to the suffix
    return Split(_Prefix(prefix), _Suffix(suffix, twins))


def _exchange(
    module: nn.Module,
    frozen: set[int],
    *,
    are_frozen: bool,
    stand_in: Callable[[], nn.Module],
    twins: list[tuple[nn.Module, nn.Module]],
) -> nn.Module:
    """Put stand-ins for the frozen, or for the open, parts of a module.

    Only modules on the way to an exchanged one are copied, without their parameters and
    children; each goes into ``twins`` with its copy. All others are shared.
    """
    is_frozen = _is_frozen(module, frozen)
    if is_frozen is (not are_frozen):
        return module
    if is_frozen is are_frozen and type(module) not in _CONTAINERS:
        return stand_in()
    # Buffers stay in the one dictionary of both: `.to` puts new tensors there.
    twin = copy.copy(module)
    twin._modules = {
        name: child
        and _exchange(child, frozen, are_frozen=are_frozen, stand_in=stand_in, twins=twins)
        for name, child in module._modules.items()
    }
    if are_frozen:
        # timm's models leave a position embedding or a class token of None out.
        twin._parameters = {
            name: None if id(parameter) in frozen else parameter
            for name, parameter in module._parameters.items()
        }
    twins.append((module, twin))
    return twin


def _is_frozen(module: nn.Module, frozen: set[int]) -> bool | None:
    """Tell whether a module is frozen as a whole; None where only parts of it are."""
    # Its parameters decide before itself: an activation in an open block may be known under its
    # other name, in a frozen one.
    verdicts = {id(parameter) in frozen for parameter in module.parameters()}
    if len(verdicts) == 2:
        return None
    return verdicts.pop() if verdicts else id(module) in frozen


def _frozen_ids(backbone: nn.Module, stages: Sequence[Stage], num_frozen: int) -> set[int]:
    """Identify the parameters and modules of the frozen stages, also under other names."""
    modules = dict(backbone.named_modules())
    parameters = dict(backbone.named_parameters())
    return {
        id(part)
        for stage in stages[:num_frozen]
        for part in (
            *(modules[name] for name in stage.module_names),
            *(parameters[name] for name in stage.parameter_names),
        )
    }


def _find_loose_parameter(
    backbone: nn.Module, stages: Sequence[Stage], num_frozen: int
) -> str | None:
    """Name an open parameter that the frozen part might use: its answers would not stay."""
    frozen = _frozen_ids(backbone, stages, num_frozen)
    for module_name, module in backbone.named_modules():
        if _is_frozen(module, frozen) is None:
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in frozen:
                    full_name = f"{module_name}.{name}".removeprefix(".")
                    return f"its open parameter {full_name} lies beside frozen parts"
    return None


def _try_on_copy(
    backbone: nn.Module, stages: Sequence[Stage], num_frozen: int, example: Tensor
) -> None:
    """Raise unless a cut of the backbone, a few steps later, gives what the whole gives."""
    trial = copy.deepcopy(backbone).eval()
    split = _cut(trial, stages, num_frozen)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in split.suffix.parameters():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(step.to(parameter), alpha=0.02)
    # Two: BatchNorm cannot learn from one, and a batch is told from an image.
    noise = torch.randn((2, *example.shape[1:]), generator=generator).to(example)
    _check_equal(trial, split, noise, "eval")
    trial.train()
    apply_frozen_mode(trial, stages, num_frozen)
    _check_equal(trial, split, noise, "train")


@torch.no_grad()
def _check_equal(backbone: nn.Module, split: Split, images: Tensor, mode: str) -> None:
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_SEED)
        expected = backbone(images)
        torch.manual_seed(_SEED)  # the same dropout
        got = split.suffix(split.prefix(images))
    if not torch.equal(got, expected):
        raise ValueError(f"the parts do not give what the whole gives (in {mode} mode)")
