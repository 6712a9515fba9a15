"""Prediction sets that hold the true class as often as was asked: split conformal prediction.

Shapes: ``N`` images, ``C`` classes. The score of a class is that of `finetune.models.sets`.

If validation images and new ones are exchangeable, a set holds the true class with a probability
of at least the coverage. The most probable class is always in it. So where the model is right more
often than was asked, sets of one class already cover more.
"""

import math
from collections.abc import Sequence
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
"""Of more than ten classes (RAPS): a long tail of improbable classes is cut."""
_MANY_CLASSES = 10


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
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: got {coverage}, expected a number in (0, 1).")
    images, num_classes = probabilities.shape
    place = math.ceil((images + 1) * coverage - 1e-9)
    if place > images or not images:
        return None
    many = num_classes > _MANY_CLASSES
    penalty, free_ranks = (PENALTY, FREE_RANKS) if many else (0.0, 1)
    scores = set_scores(probabilities, penalty=penalty, free_ranks=free_ranks)
    of_true = scores.gather(1, targets.cpu().long().unsqueeze(1)).squeeze(1)
    limit = float(of_true.kthvalue(place).values)
    return SetRule(coverage, limit, penalty, free_ranks, images)


def expected_range(images: int, coverage: float, *, level: float = 0.95) -> tuple[float, float]:
    """Say between which coverages new images will lie, as chance chose the calibration images.

    Args:
        images: that the limit was chosen on.
        coverage: that was asked.
        level: of the range, in (0, 1).

    Source: Vovk 2012, "Conditional validity of inductive conformal predictors": the coverage is
    distributed as Beta(N + 1 - l, l) with l = floor((N + 1) (1 - coverage)).
    """
    left = math.floor((images + 1) * (1 - coverage) + 1e-9)
    if left < 1:
        return 0.0, 1.0
    tail = (1 - level) / 2
    found = beta(images + 1 - left, left)
    return float(found.ppf(tail)), float(found.ppf(1 - tail))


def is_reliable(images: int, coverage: float) -> bool:
    """Tell whether the images are enough: the expected range is within ``MARGIN`` of the coverage.

    With a coverage of 0.95 that takes about 800 images, with 0.9 about 1,500.
    """
    low, high = expected_range(images, coverage)
    return low >= coverage - MARGIN and high <= coverage + MARGIN


def describe_sets(probabilities: Tensor, targets: Tensor, rule: SetRule) -> SetReport:
    """Say what sets are like on labelled images, N >= 1."""
    known = targets.cpu().long()
    sets = _sets(probabilities, rule)
    holds = sets.gather(1, known.unsqueeze(1)).squeeze(1)
    sizes = sets.sum(1)
    by_class = [holds[known == index] for index in range(sets.shape[1])]
    accuracy = float((probabilities.cpu().argmax(1) == known).double().mean())
    return SetReport(
        coverage=float(holds.double().mean()),
        mean_size=float(sizes.double().mean()),
        share_single=float((sizes == 1).double().mean()),
        sizes=tuple(torch.bincount(sizes)[1:].tolist()),
        class_coverage=tuple(
            float(part.double().mean()) if len(part) else None for part in by_class
        ),
        is_above_by_accuracy=accuracy >= rule.coverage,
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

    Args:
        probabilities: ``[N, C]``.
        targets: ``[N]`` int64.
        coverage: that is asked.
        groups: ``[N]``, never parted; None stands alone.
        seed: of the folds.
        folds: >= 2.
    """
    places = fold_places(len(targets), groups, seed=seed, folds=folds)
    if places is None:
        return None
    known = targets.cpu().long()
    holds = torch.zeros(len(known), dtype=torch.bool)
    for fold in np.unique(places):
        held_out = torch.from_numpy(places == fold)
        rule = fit_sets(probabilities[~held_out], known[~held_out], coverage=coverage)
        if rule is None:
            return None
        sets = _sets(probabilities[held_out], rule)
        holds[held_out] = sets.gather(1, known[held_out].unsqueeze(1)).squeeze(1)
    return float(holds.double().mean())


def _sets(probabilities: Tensor, rule: SetRule) -> Tensor:
    return prediction_sets(
        probabilities, limit=rule.limit, penalty=rule.penalty, free_ranks=rule.free_ranks
    )
