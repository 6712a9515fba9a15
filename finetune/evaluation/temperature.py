"""Temperature scaling: one number by which logits are divided, so that probabilities hold.

Shapes: ``N`` images, ``C`` classes or labels.

What a temperature is fitted to are the mistakes: how sure the model was of them, against how many
there are. Where there are few, it is fitted as if one image more were wrong, so that no number of
right answers makes a model certain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GroupKFold
from torch import Tensor
from torch.nn import functional

from finetune.evaluation.reliability import expected_calibration_error
from finetune.models.answers import Task, as_hot, decide, to_probabilities

Numbers = npt.NDArray[np.int64]

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are tried. Where every image is right, the loss falls without end towards 0."""
FEWEST_IMAGES = 50
"""Fewer leave the folds 10 images or less to judge a temperature by."""
FEWEST_MISTAKES = 10
"""With fewer, one more is made up.

Drawn models, temperatures from 60 to 360 images (`benchmarks/temperature.py`): with it and the
standard error in `calibrate`, other images lost 0.038 nats at worst, instead of 1.8 with neither. A
model that is 94 % right and not sure enough (its temperature should be 0.5) gained 0.007 nats from
60 images and 0.021 from 150, instead of 0 and 0.007 where few mistakes gave no temperature at all.
Beside more mistakes, a made-up one only costs.
"""

_ENOUGH_NUMBERS = 1_000_000
_CHUNK = 500_000
"""Numbers at once, so that memory does not grow with the images."""


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it brings on images that it was not fitted to.

    Attributes:
        temperature: 1 where none is used.
        log_loss_before: mean loss of the logits as they are, in nats; None of too few images.
        log_loss_after: the same of the probabilities that the other folds' temperatures give;
            None where no temperature is used.
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


def fit_temperature(
    logits: Tensor, targets: Tensor, task: Task, *, made_up_mistakes: int = 0
) -> float:
    """Find the temperature with the least log loss, in ``LOWEST``..``HIGHEST``.

    Where every image is right, that is near ``LOWEST`` unless mistakes are made up; where the
    logits say nothing, near ``HIGHEST``. Of more than a million logits, those of some images drawn
    at random count: enough for one number.

    Args:
        logits: ``[N, C]``, finite, N >= 1.
        targets: classes ``[N]`` int64, or with ``multilabel`` multi-hot ``[N, C]``.
        task: what the logits mean.
        made_up_mistakes: images (of several labels: pairs) that count as wrong beside the others.

    Source: Guo et al. 2017, "On calibration of modern neural networks"; the made-up mistakes are
    the targets of Platt 1999, "Probabilistic outputs for support vector machines".
    """
    numbers, known = logits.detach().cpu(), targets.cpu()
    most = max(1, _ENOUGH_NUMBERS // numbers.shape[1])
    if len(numbers) > most:
        chosen = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))[:most]
        numbers, known = numbers[chosen], known[chosen]
    numbers = numbers.double()

    answers = numbers.numel() if task == "multilabel" else len(numbers)
    share = made_up_mistakes / (answers + 2 * made_up_mistakes)

    # In 1/T the loss is convex, so it has one valley in log T as well.
    found = minimize_scalar(
        lambda log_temperature: float(
            _losses(numbers, known, task, math.exp(log_temperature), wrong=share).mean()
        ),
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
    The temperature stays 1 if that does not lower the log loss by more than a standard error, or
    if there are too few images: where it matters little, the network's own probabilities are safer
    than those that chance made surer. Of few mistakes, see ``FEWEST_MISTAKES``.

    Args:
        logits: ``[N, C]``, finite, of images that the model did not train on.
        targets: classes ``[N]`` int64, or with ``multilabel`` multi-hot ``[N, C]``.
        task: what the logits mean.
        groups: ``[N]``; None stands alone.
        seed: of the folds.
        folds: >= 2.

    Source of the standard error as a margin: Breiman et al. 1984, "Classification and regression
    trees", section 3.4.3.
    """
    plain, known, images = logits.detach().cpu(), targets.cpu(), len(logits)
    if images < FEWEST_IMAGES:
        reason = f"{images} validation images are fewer than {FEWEST_IMAGES}."
        return Calibration(1.0, None, None, None, None, images, f"{_NOT_FITTED}{reason}")
    before, ece_before = _judge(plain, known, task)
    places = fold_places(images, groups, seed=seed, folds=folds)
    if places is None:
        reason = "the validation images are one group, so none are left to try it on."
        return Calibration(1.0, before, None, ece_before, None, images, f"{_NOT_FITTED}{reason}")
    made_up = 1 if _count_mistakes(plain, known, task) < FEWEST_MISTAKES else 0
    temperatures = torch.ones(images, 1)
    for fold in range(int(places.max()) + 1):
        held_out = torch.from_numpy(places == fold)
        temperatures[held_out] = fit_temperature(
            plain[~held_out], known[~held_out], task, made_up_mistakes=made_up
        )
    after, ece_after = _judge(plain.float() / temperatures, known, task)
    error = _gain_error(plain, temperatures, known, task, groups)
    if before - after <= error:
        reason = (
            "The temperature stays 1: one that was fitted would bring the log loss of images that "
            f"it was not fitted to from {before:.4f} to {after:.4f}, "
        )
        reason += (
            f"and that gain may be chance (its standard error is {error:.4f})."
            if after < before
            else "which is no gain."
        )
        return Calibration(1.0, before, None, ece_before, None, images, reason)
    temperature = fit_temperature(plain, known, task, made_up_mistakes=made_up)
    direction = "too sure" if temperature > 1 else "not sure enough"
    reason = (
        f"The network was {direction} of its answers, so its logits are divided by a "
        f"temperature of {temperature:.3f}, fitted to {images:,} validation images"
        f"{' and a made-up mistake, as there are few' if made_up else ''}."
    )
    return Calibration(temperature, before, after, ece_before, ece_after, images, reason)


_NOT_FITTED = "No temperature was fitted: "


def fold_places(
    images: int, groups: Sequence[str | None] | None, *, seed: int, folds: int
) -> Numbers | None:
    """Deal images into folds, groups whole: the number of each one's fold; None of one unit."""
    numbers = _number_units(images, groups)
    count = len(np.unique(numbers))
    if count < 2:
        return None
    places = np.zeros(images, dtype=np.int64)
    deal = GroupKFold(min(folds, count), shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(deal.split(numbers, groups=numbers)):
        places[held_out] = fold
    return places


def _number_units(images: int, groups: Sequence[str | None] | None) -> Numbers:
    """Number the groups, and the images that stand alone: one number per image."""
    names = [None] * images if groups is None else list(groups)
    units = {name: place for place, name in enumerate(dict.fromkeys(n for n in names if n))}
    alone = iter(range(len(units), len(units) + images))
    return np.array([units[name] if name else next(alone) for name in names], dtype=np.int64)


def _count_mistakes(logits: Tensor, targets: Tensor, task: Task) -> int:
    """Count wrong images; of several labels, wrong pairs of an image and a label."""
    given = decide(to_probabilities(logits, task), task)
    is_wrong = given != as_hot(targets, logits.shape[1])
    return int(is_wrong.sum() if task == "multilabel" else is_wrong.any(1).sum())


def _judge(logits: Tensor, targets: Tensor, task: Task) -> tuple[float, float]:
    """Give log loss and expected calibration error."""
    error = expected_calibration_error(to_probabilities(logits, task), targets, task)
    return _log_loss(logits, targets, task, 1.0), error


def _gain_error(
    logits: Tensor,
    temperatures: Tensor,
    targets: Tensor,
    task: Task,
    groups: Sequence[str | None] | None,
) -> float:
    """Give the standard error of the mean gain; images of a group gain together."""
    scaled = _losses(logits.float() / temperatures, targets, task, 1.0)
    gains = (_losses(logits, targets, task, 1.0) - scaled).numpy()
    of_units = np.bincount(_number_units(len(gains), groups), weights=gains - gains.mean())
    return float(np.sqrt(np.square(of_units).sum()) / len(gains))


def _log_loss(logits: Tensor, targets: Tensor, task: Task, temperature: float) -> float:
    return float(_losses(logits, targets, task, temperature).mean())


def _losses(
    logits: Tensor, targets: Tensor, task: Task, temperature: float, *, wrong: float = 0.0
) -> Tensor:
    """Give the loss of each image ``[N]``, float64; with ``multilabel`` the mean over labels.

    ``wrong`` is the share of each target, in [0, 0.5), that is given to what is not true.
    """
    classes = logits.shape[1]
    found, size = [], max(1, _CHUNK // classes)
    for numbers, known in zip(torch.split(logits, size), torch.split(targets, size), strict=True):
        scaled = numbers.double() / temperature
        if task == "multilabel":
            losses = functional.binary_cross_entropy_with_logits(
                scaled, known.double() * (1 - 2 * wrong) + wrong, reduction="none"
            ).mean(1)
        else:
            # PyTorch's smoothing also gives the true class its part of what it takes.
            smoothing = wrong * classes / (classes - 1)
            losses = functional.cross_entropy(
                scaled, known.long(), reduction="none", label_smoothing=smoothing
            )
        found.append(losses)
    return torch.cat(found)
