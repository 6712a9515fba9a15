"""Thresholds of the positive of two classes, and what each of them finds and misses.

Shapes: ``N`` images, ``K`` thresholds. An image is called positive from the threshold on. Both are
compared as float32, which models answer in and `finetune.prediction.decision` compares by.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

DEFAULT_THRESHOLD = 0.5

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold, and what it gives; shares in [0, 1], ``None`` where undefined.

    Attributes:
        rule: why this threshold; see `choose_operating_points`.
        threshold: an image is positive where its score is at least this, in (0, 1).
        sensitivity: share of the positive images that are called positive.
        specificity: share of the negative images that are called negative.
        positive_predictive_value: share of those called positive that are.
        negative_predictive_value: share of those called negative that are. Both hold for as many
            positives among the images as here, and for no other prevalence.
        tp: positive images called positive.
        fp: negative images called positive.
        fn: positive images called negative.
        tn: negative images called negative.
    """

    rule: str
    threshold: float
    sensitivity: float | None
    specificity: float | None
    positive_predictive_value: float | None
    negative_predictive_value: float | None
    tp: int
    fp: int
    fn: int
    tn: int


def choose_operating_points(
    scores: Tensor,
    is_positive: Tensor,
    *,
    min_sensitivity: float,
    min_specificity: float,
) -> tuple[OperatingPoint, ...]:
    """Choose thresholds by four rules, on images that nothing else was chosen on.

    ``default`` is 0.5, where the more probable class is given. ``youden`` has the largest sum of
    sensitivity and specificity; of several the one nearest to 0.5. ``min_sensitivity`` is the
    highest threshold that keeps a sensitivity, so that the specificity is the best;
    ``min_specificity`` the lowest that keeps a specificity.

    Args:
        scores: probability of the positive class, ``[N]`` in [0, 1].
        is_positive: ``[N]`` bool.
        min_sensitivity: in [0, 1].
        min_specificity: in [0, 1].

    Returns:
        One per rule, in this order. Left out: without positives or without negatives all but
        ``default``, and a rule that no threshold in (0, 1) keeps.

    Source: Youden 1950, "Index for rating diagnostic tests".
    """
    points = [operating_point_at(scores, is_positive, DEFAULT_THRESHOLD, "default")]
    is_positive = is_positive.cpu()
    thresholds, found, spared = _sweep(_numbers(scores), is_positive.numpy())
    if not len(thresholds) or not is_positive.any() or is_positive.all():
        return tuple(points)
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    # In whole numbers, so that equal sums are equal.
    sums = found * negatives + spared * positives
    best = np.flatnonzero(sums == sums.max())
    nearest = best[np.abs(thresholds[best] - DEFAULT_THRESHOLD).argmin()]
    chosen: list[tuple[str, int]] = [("youden", int(nearest))]
    is_sensitive = found / positives >= min_sensitivity
    is_specific = spared / negatives >= min_specificity
    if is_sensitive.any():
        chosen.append(("min_sensitivity", int(np.flatnonzero(is_sensitive)[-1])))
    if is_specific.any():
        chosen.append(("min_specificity", int(np.flatnonzero(is_specific)[0])))
    for rule, index in chosen:
        points.append(operating_point_at(scores, is_positive, float(thresholds[index]), rule))
    return tuple(points)


def operating_point_at(
    scores: Tensor, is_positive: Tensor, threshold: float, rule: str
) -> OperatingPoint:
    """Measure a threshold, perhaps on other images than it was chosen on.

    Args:
        scores: probability of the positive class, ``[N]`` in [0, 1].
        is_positive: ``[N]`` bool.
        threshold: in (0, 1).
        rule: by which it was chosen.
    """
    if scores.shape != is_positive.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(
            f"scores: got shape {list(scores.shape)}, is_positive: {list(is_positive.shape)}; "
            "expected [N] of both, with at least one image."
        )
    is_called, truth = _numbers(scores) >= np.float32(threshold), is_positive.cpu().numpy()
    tp, fp = int((is_called & truth).sum()), int((is_called & ~truth).sum())
    fn, tn = int((~is_called & truth).sum()), int((~is_called & ~truth).sum())
    return OperatingPoint(
        rule=rule,
        threshold=threshold,
        sensitivity=_share(tp, fn),
        specificity=_share(tn, fp),
        positive_predictive_value=_share(tp, fp),
        negative_predictive_value=_share(tn, fn),
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
    )


class _Sweep(NamedTuple):
    """Rising thresholds, positives at or above each, and negatives below: ``[K]`` each."""

    thresholds: npt.NDArray[np.float64]
    found: npt.NDArray[np.int64]
    spared: npt.NDArray[np.int64]


def _sweep(scores: Scores, is_positive: npt.NDArray[np.bool_]) -> _Sweep:
    """Count at a threshold between each two neighbouring scores, and at both ends."""
    levels, places = np.unique(scores, return_inverse=True)
    positives = np.bincount(places[is_positive], minlength=len(levels))
    negatives = np.bincount(places[~is_positive], minlength=len(levels))
    below = np.concatenate([np.zeros((2, 1)), np.cumsum([positives, negatives], axis=1)], axis=1)
    edges = np.concatenate([[0], levels, [1]]).astype(np.float32)
    between = [_between(low, high) for low, high in itertools.pairwise(edges)]
    is_there = np.array([threshold is not None for threshold in between])
    return _Sweep(
        np.array([threshold for threshold in between if threshold is not None]),
        (positives.sum() - below[0]).astype(np.int64)[is_there],
        below[1].astype(np.int64)[is_there],
    )


def _between(low: np.float32, high: np.float32) -> float | None:
    """Find a threshold in (0, 1) that ``high`` reaches and ``low`` does not.

    It is about midway, so that a score that is computed again does not cross it, and as short to
    write as that allows.
    """
    middle = (float(low) + float(high)) / 2
    for digits in range(2, 10):
        short = round(middle, digits)
        if low < np.float32(short) < high:
            return short
    # Neighbours in float32: nothing lies between them.
    return float(high) if low < high < 1 else None


def _numbers(scores: Tensor) -> Scores:
    return scores.detach().cpu().float().numpy()


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
