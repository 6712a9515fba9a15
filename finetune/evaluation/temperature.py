"""Temperature scaling: one number by which logits are divided, so that probabilities hold.

Shapes: ``N`` images, ``C`` classes or labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GroupKFold
from torch import Tensor
from torch.nn import functional

from finetune.evaluation.reliability import expected_calibration_error
from finetune.models.answers import Task, to_probabilities

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are tried. Where every image is right, the loss falls without end towards 0."""
FEWEST_IMAGES = 50
"""Fewer say too little even about one number."""

_ENOUGH_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it brings on images that it was not fitted to.

    Attributes:
        temperature: 1 where none helps.
        log_loss_before: mean loss in nats; None without enough images.
        log_loss_after: the same of the probabilities that the other folds' temperatures give.
        ece_before: expected calibration error, in [0, 1].
        ece_after: likewise.
        images: N.
        reason: what was decided and why, in sentences.
    """

    temperature: float
    log_loss_before: float | None
    log_loss_after: float | None
    ece_before: float | None
    ece_after: float | None
    images: int
    reason: str


def fit_temperature(logits: Tensor, targets: Tensor, task: Task) -> float:
    """Find the temperature with the least log loss, in ``LOWEST``..``HIGHEST``.

    Of very many images, evenly chosen ones: thousands are enough for one number.

    Args:
        logits: ``[N, C]``, finite.
        targets: classes ``[N]`` int64, or with ``multilabel`` multi-hot ``[N, C]``.
        task: what the logits mean.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """
    step = max(1, -(-logits.numel() // _ENOUGH_NUMBERS))
    numbers = logits[::step].detach().cpu().double()
    known = targets[::step].cpu()

    def loss(log_temperature: float) -> float:
        return _log_loss(numbers / math.exp(log_temperature), known, task)

    # In 1/T the loss is convex, so it has one valley in log T as well.
    found = minimize_scalar(
        loss,
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(math.exp(found.x))


def calibrate(
    logits: Tensor,
    targets: Tensor,
    *,
    task: Task,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
    folds: int = 5,
) -> Calibration:
    """Fit a temperature, and find out what it brings on images that it was not fitted to.

    The images are divided into folds, groups whole; each fold gets the temperature of the others.
    If these do not lower the log loss, the temperature is 1.

    Args:
        logits: ``[N, C]``, finite, of images that the model did not train on.
        targets: classes ``[N]`` int64, or with ``multilabel`` multi-hot ``[N, C]``.
        task: what the logits mean.
        groups: ``[N]``; None stands alone.
        seed: of the folds.
        folds: >= 2.
    """
    images = len(logits)
    places = fold_places(images, groups, seed=seed, folds=folds)
    if images < FEWEST_IMAGES or places is None:
        reason = (
            f"No temperature was fitted: {images} validation images are fewer than {FEWEST_IMAGES}."
            if images < FEWEST_IMAGES
            else "No temperature was fitted: the validation images are one group."
        )
        return Calibration(1.0, None, None, None, None, images, reason)
    scaled = logits.detach().cpu().double().clone()
    plain = scaled.clone()
    for fold in range(int(places.max()) + 1):
        held_out = torch.from_numpy(places == fold)
        scaled[held_out] /= fit_temperature(plain[~held_out], targets[~held_out], task)
    before, after = (_log_loss(numbers, targets, task) for numbers in (plain, scaled))
    errors = [
        expected_calibration_error(to_probabilities(numbers, task), targets, task)
        for numbers in (plain, scaled)
    ]
    temperature = fit_temperature(plain, targets, task)
    if after >= before:
        temperature = 1.0
        reason = "No temperature lowers the log loss of images that it was not fitted to."
    elif temperature < 2 * LOWEST:
        # The images tell no end: all are right, so the loss only falls with more certainty.
        temperature = 1.0
        reason = "No temperature was fitted: no answer on validation is wrong."
    else:
        direction = "too sure" if temperature > 1 else "not sure enough"
        reason = (
            f"The network was {direction} of its answers, so its logits are divided by a "
            f"temperature of {temperature:.3f}, fitted to {images:,} validation images."
        )
    return Calibration(temperature, before, after, errors[0], errors[1], images, reason)


def fold_places(
    images: int, groups: Sequence[str | None] | None, *, seed: int, folds: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None:
    """Deal images into folds, groups whole: the number of each one's fold; None of one unit."""
    names = [None] * images if groups is None else list(groups)
    units = {name: place for place, name in enumerate(dict.fromkeys(n for n in names if n))}
    alone = iter(range(len(units), len(units) + images))
    numbers = np.array([units[name] if name else next(alone) for name in names], dtype=np.int64)
    count = len(set(numbers.tolist()))
    if count < 2:
        return None
    places = np.zeros(images, dtype=np.int64)
    deal = GroupKFold(min(folds, count), shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(deal.split(numbers, groups=numbers)):
        places[held_out] = fold
    return places


def _log_loss(logits: Tensor, targets: Tensor, task: Task) -> float:
    if task == "multilabel":
        loss = functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
    else:
        loss = functional.cross_entropy(logits, targets.long())
    return float(loss)
