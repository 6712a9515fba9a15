"""The learning-rate finder: a short training whose rate rises with every step.

Shapes: ``n`` steps.
"""

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from finetune.training.module import Batch, FineTuning

_SMOOTHING = 0.9
"""How much of the mean so far each step keeps: it then runs over about ten steps."""
_MIN_STEPS = 10


@dataclass(frozen=True)
class RateCurve:
    """What the finder saw, and what it makes of that.

    Attributes:
        rates: ``n`` learning rates of the head, rising.
        losses: of the batch before each step, all finite.
        smoothed: the running mean of the losses.
        suggestion: a rate to train with; None where the curve shows none.
        reason: for the suggestion, or for its absence.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    reason: str


def find_rate(
    step: Callable[[float], float],
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    num_steps: int = 100,
    diverged_factor: float = 4.0,
) -> RateCurve:
    """Train with a rate that rises by the same factor each step, until the loss diverges.

    Args:
        step: trains one step at a rate of the head, and returns the loss before it; see
            `rate_step`.
        lowest: first rate, > 0.
        highest: rate of the last step, > ``lowest``.
        num_steps: at least 10.
        diverged_factor: the end is where the smoothed loss is this many times its lowest, > 1,
            and above where it began: a loss near 0 is several times its lowest by chance.

    Raises:
        ValueError: an argument is out of its range.

    Source: Smith 2017 (Cyclical Learning Rates), section 3.3; the end as in fastai's ``lr_find``.
    """
    if not 0 < lowest < highest or num_steps < _MIN_STEPS or diverged_factor <= 1:
        raise ValueError(
            f"got rates {lowest} to {highest} in {num_steps} steps and diverged_factor "
            f"{diverged_factor}, expected rising rates > 0, >= {_MIN_STEPS} steps and a factor > 1."
        )
    rates: list[float] = []
    losses: list[float] = []
    for index in range(num_steps):
        rate = lowest * (highest / lowest) ** (index / (num_steps - 1))
        loss = step(rate)
        if not math.isfinite(loss):
            break
        rates.append(rate)
        losses.append(loss)
        smoothed = smooth_losses(losses)
        if smoothed[-1] > max(diverged_factor * min(smoothed), smoothed[0]):
            break
    return suggest_rate(rates, losses)


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> RateCurve:
    """Suggest the middle, in logarithms, of the stretch in which the loss falls.

    It runs from where nine tenths of the fall are still to come to the lowest running mean. The
    rate of the lowest loss is too high: there the loss is about to rise. The steepest place hangs
    on a single step. fastai's "valley" takes the middle of the longest falling subsequence, which
    may begin in the noise long before the loss falls.

    Args:
        rates: ``n``, rising, > 0.
        losses: ``n``, finite.

    Returns:
        The curve; without a suggestion for fewer than 10 steps, and for a loss that does not fall
        by more than 2 %, and by more than twice the deviation of a batch.

    Source: after fastai ``callback/schedule.py``, ``valley``, with another start.
    """
    smoothed = smooth_losses(losses)

    def curve(suggestion: float | None, reason: str) -> RateCurve:
        return RateCurve(tuple(rates), tuple(losses), tuple(smoothed), suggestion, reason)

    if len(losses) < _MIN_STEPS:
        return curve(None, f"the loss broke off after {len(losses)} steps; try smaller rates")
    # The mean is over few batches before, and may lie low by chance.
    end = min(range(_MIN_STEPS - 1, len(smoothed)), key=smoothed.__getitem__)
    before = float(np.mean(losses[:_MIN_STEPS]))
    fall = before - smoothed[end]
    if fall <= max(2 * _noise(losses), 0.02 * abs(before)):
        return curve(
            None, f"the loss never falls clearly below {before:.3g}, where it begins, at any rate"
        )
    start = max((i for i in range(end) if smoothed[i] >= before - 0.1 * fall), default=0)
    return curve(
        rates[(start + end) // 2],
        f"the middle of the loss's fall, from {smoothed[start]:.3g} at {rates[start]:.1e} "
        f"to {smoothed[end]:.3g} at {rates[end]:.1e}",
    )


def smooth_losses(losses: Sequence[float]) -> list[float]:
    """Average exponentially; the start is not pulled towards 0 (Kingma & Ba 2015, section 3)."""
    mean, smoothed = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed.append(mean / (1 - _SMOOTHING**count))
    return smoothed


def _noise(losses: Sequence[float]) -> float:
    """Estimate the deviation of one loss from the steps between them; the trend hardly counts."""
    # The median, since a few steps of a loss that diverges would drown all others. 0.6745 is the
    # median of a normal distribution's sizes, and a difference of two has twice the variance.
    return float(np.median(np.abs(np.diff(losses)))) / (0.6745 * math.sqrt(2))


@contextmanager
def rate_step(
    module: FineTuning,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    dtype: torch.dtype | None = None,
    gradient_clip: float | None = None,
) -> Iterator[Callable[[float], float]]:
    """Yield what `find_rate` asks for: real training steps, all undone in the end.

    Args:
        module: on the device to train on.
        optimizer: made for this search, of the module's parameters; its last group is the head's.
            A rate of the head changes every group's by the same factor.
        batches: to train on; from the start again when they are over.
        dtype: of autocast; None computes in float32.
        gradient_clip: largest norm of the gradient; None for no limit.

    Raises:
        ValueError: the head does not learn, or ``batches`` is empty or can be read only once and
            is over.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    if not rates[-1] > 0:
        raise ValueError(f"got a learning rate of {rates[-1]} for the head, expected one > 0.")
    device = next(module.parameters()).device
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    endless = enumerate(_again_and_again(batches))

    def step(rate: float) -> float:
        for group, own in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = own * rate / rates[-1]
        index, (images, targets) = next(endless)
        images, targets = images.to(device), targets.to(device)
        if module.mix is not None:
            rng = np.random.default_rng([module.seed, index])
            images, targets = module.mix(images, targets, rng)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = module.loss(module(images), targets)
        value = float(loss.detach())
        if math.isfinite(value):
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if gradient_clip is not None:
                nn.utils.clip_grad_norm_(parameters, gradient_clip)
            scaler.step(optimizer)
            scaler.update()
        return value

    before = copy.deepcopy(optimizer.state_dict())
    with restored(module):
        module.train()
        try:
            yield step
        finally:
            optimizer.load_state_dict(before)


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Put everything back in the end: parameters, buffers, gradients, modes, random generators.

    The copies are kept in main memory. What is restored is bitwise the same, also after an error.
    Generators: torch's (of all devices), NumPy's global one and Python's.
    """
    values = {name: value.detach().to("cpu", copy=True) for name, value in _tensors(module)}
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    modes = [(part, part.training) for part in module.modules()]
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in _tensors(module):
                value.copy_(values[name])
        for parameter, gradient in gradients:
            parameter.grad = gradient
        # Not through train(), which also sets the parts below, and may refuse what is frozen.
        for part, mode in modes:
            part.training = mode
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    # Not the state dict, which lacks the buffers that no checkpoint keeps.
    yield from module.named_parameters()
    yield from module.named_buffers()


def _again_and_again(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        is_over = True
        for batch in batches:
            is_over = False
            yield batch
        if is_over:
            raise ValueError("batches: got none, expected some that can be read again.")
