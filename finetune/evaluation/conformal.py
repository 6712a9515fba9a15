"""Prediction sets that hold the true class as often as was asked: split conformal prediction.

Shapes: ``N`` images, ``C`` classes. The score of a class is that of `finetune.models.sets`.

If validation images and new ones are exchangeable, a set holds the true class with a probability
of at least the coverage, over the choice of both. Images of another place, camera or year are not
exchangeable with those of validation, and images of one patient are fewer than they seem: nothing
is promised about them. That a temperature was fitted to the same images, one number, matters
little.

The most probable class is always in its set. So where the model is right more often than was
asked, sets of one class already cover more.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from finetune.evaluation.temperature import fold_places
from finetune.models.sets import prediction_sets, set_scores

MARGIN = 0.015
"""Sets are relied on if the coverage that chance may give is this near to what was asked."""
PENALTY, FREE_RANKS = 0.01, 5
"""Of more than ten classes (RAPS): a long tail of improbable classes is cut.

On 2,000 drawn answers among 1,000 classes, at a coverage of 0.9, that shortened sets from 20
classes to 16, the longest from 77 to 31. Larger penalties made them longer again, and long ones
miss more often. Up to ten classes, no penalty shortened anything.
"""

_MANY_CLASSES = 10
_SLACK = 1e-5
"""Added to the limit: what another runtime rounds otherwise changes no set of these images."""
_CHUNK = 1_000_000
"""Numbers at once, so that memory does not grow with the images."""


@dataclass(frozen=True)
class SetRule:
    """How sets are made; see `finetune.exports.description.PredictionSets`."""

    coverage: float
    limit: float
    penalty: float
    free_ranks: int
    images: int


@dataclass(frozen=True)
class SetReport:
    """What sets are like on labelled images.

    Attributes:
        coverage: share of sets that hold the true class.
        mean_size: classes in a set.
        share_single: share of sets of one class.
        sizes: sets by size: number of sets of 1, 2, … classes, up to the largest.
        class_coverage: the same share by true class; None for a class without images.
        is_above_by_accuracy: the most probable class alone is right at least as often as asked.
    """

    coverage: float
    mean_size: float
    share_single: float
    sizes: tuple[int, ...]
    class_coverage: tuple[float | None, ...]
    is_above_by_accuracy: bool


def fit_sets(probabilities: Tensor, targets: Tensor, *, coverage: float) -> SetRule | None:
    """Choose the limit of the scores; None where there are too few images for the coverage.

    The limit is the ``ceil((N + 1) * coverage)``-th smallest score of a true class, as the source
    has it. The penalty is fixed beforehand by the number of classes, not chosen on these images,
    which would break the promise.

    Args:
        probabilities: ``[N, C]``, rows add up to 1, of images that the model did not train on.
        targets: ``[N]`` int64.
        coverage: in (0, 1).

    Source: Vovk et al. 2005; Angelopoulos and Bates 2021, "A gentle introduction to conformal
    prediction"; RAPS: Angelopoulos et al. 2021, "Uncertainty sets for image classifiers using
    conformal prediction".
    """
    _check(coverage)
    penalty, free_ranks = _penalty_of(probabilities.shape[1])
    scores = _true_scores(probabilities, targets, penalty, free_ranks)
    limit = _limit(scores, coverage)
    if limit is None:
        return None
    return SetRule(coverage, limit, penalty, free_ranks, len(scores))


def expected_range(images: int, coverage: float, *, level: float = 0.95) -> tuple[float, float]:
    """Say between which coverages new images will lie, as chance chose the calibration images.

    That holds for images one by one, drawn from what new ones are drawn from; of images in groups,
    the range is wider. Where the model is right more often than the coverage, it is too low.

    Args:
        images: that the limit was chosen on.
        coverage: that was asked.
        level: of the range, in (0, 1).

    Source: Vovk 2012, "Conditional validity of inductive conformal predictors": the coverage is
    distributed as Beta(N + 1 - l, l) with l = floor((N + 1) (1 - coverage)).
    """
    left = images + 1 - _place(images, coverage)
    if left < 1:
        return 0.0, 1.0
    tail = (1 - level) / 2
    found = beta(images + 1 - left, left)
    return float(found.ppf(tail)), float(found.ppf(1 - tail))


def is_reliable(images: int, coverage: float) -> bool:
    """Tell whether the images are enough: the expected range is within ``MARGIN`` of the coverage.

    That takes 800 to 900 images with a coverage of 0.95, 1,550 to 1,650 with 0.9: in between, it
    depends on the rounding of the limit's rank.
    """
    low, high = expected_range(images, coverage)
    return low >= coverage - MARGIN and high <= coverage + MARGIN


def describe_sets(probabilities: Tensor, targets: Tensor, rule: SetRule) -> SetReport:
    """Say what sets are like on labelled images, N >= 1."""
    known = targets.cpu().long()
    holds, sizes, is_right = [], [], []
    for rows, part in _chunks(probabilities):
        sets = prediction_sets(
            part, limit=rule.limit, penalty=rule.penalty, free_ranks=rule.free_ranks
        )
        holds.append(sets.gather(1, known[rows].unsqueeze(1)).squeeze(1))
        sizes.append(sets.sum(1))
        is_right.append(part.argmax(1) == known[rows])
    held, size, classes = torch.cat(holds).double(), torch.cat(sizes), probabilities.shape[1]
    counts = torch.bincount(known, minlength=classes)
    shares = torch.bincount(known, weights=held, minlength=classes) / counts
    return SetReport(
        coverage=float(held.mean()),
        mean_size=float(size.double().mean()),
        share_single=float((size == 1).double().mean()),
        sizes=tuple(torch.bincount(size)[1:].tolist()),
        class_coverage=tuple(
            share if count else None
            for share, count in zip(shares.tolist(), counts.tolist(), strict=True)
        ),
        is_above_by_accuracy=float(torch.cat(is_right).double().mean()) >= rule.coverage,
    )


def cross_fitted_coverage(
    probabilities: Tensor,
    targets: Tensor,
    *,
    coverage: float,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
    folds: int = 5,
) -> float | None:
    """Measure the coverage of images that the limit was not chosen on; None of too few.

    Of images one by one, it is near to what was asked however few they are, and says little; in
    groups, it shows whether the groups are alike.

    Args:
        probabilities: ``[N, C]``.
        targets: ``[N]`` int64.
        coverage: that is asked.
        groups: ``[N]``, never parted; None stands alone.
        seed: of the folds.
        folds: >= 2.
    """
    _check(coverage)
    places = fold_places(len(targets), groups, seed=seed, folds=folds)
    if places is None:
        return None
    scores = _true_scores(probabilities, targets, *_penalty_of(probabilities.shape[1]))
    held = 0
    for fold in np.unique(places):
        held_out = torch.from_numpy(places == fold)
        limit = _limit(scores[~held_out], coverage)
        if limit is None:
            return None
        held += int((scores[held_out] <= limit).sum())
    return held / len(scores)


def _check(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: got {coverage}, expected a number in (0, 1).")


def _penalty_of(num_classes: int) -> tuple[float, int]:
    return (PENALTY, FREE_RANKS) if num_classes > _MANY_CLASSES else (0.0, 1)


def _place(images: int, coverage: float) -> int:
    """Give the rank of the score that is the limit, from 1; beyond the images: too few."""
    # Without the rounding of 20 * 0.95, which must be 19.
    return max(1, math.ceil((images + 1) * coverage - 1e-9))


def _limit(scores: Tensor, coverage: float) -> float | None:
    place = _place(len(scores), coverage)
    return float(scores.kthvalue(place).values) + _SLACK if place <= len(scores) else None


def _true_scores(probabilities: Tensor, targets: Tensor, penalty: float, free_ranks: int) -> Tensor:
    """Give the score of each image's true class, ``[N]``."""
    known = targets.cpu().long()
    found = [torch.empty(0, dtype=torch.float64)]
    for rows, part in _chunks(probabilities):
        scores = set_scores(part, penalty=penalty, free_ranks=free_ranks)
        found.append(scores.gather(1, known[rows].unsqueeze(1)).squeeze(1))
    return torch.cat(found)


def _chunks(probabilities: Tensor) -> Iterator[tuple[slice, Tensor]]:
    numbers = probabilities.detach().cpu()
    size = max(1, _CHUNK // numbers.shape[1])
    for first in range(0, len(numbers), size):
        rows = slice(first, first + size)
        yield rows, numbers[rows]
