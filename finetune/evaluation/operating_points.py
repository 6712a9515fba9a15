"""Thresholds for the positive of two classes, and what each gives.

Shapes: ``N`` images. The positive class is given where its probability is at least the threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT = 0.5


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and what it gives; shares in [0, 1], ``None`` where undefined.

    Attributes:
        rule: why this threshold: ``default``, ``youden``, ``min_sensitivity`` or
            ``min_specificity``.
        threshold: in (0, 1).
        sensitivity: share of the positive images that are given as positive.
        specificity: share of the others that are not.
        positive_predictive_value: share of those given as positive that are.
        negative_predictive_value: share of those not given as positive that are not.
        tp: images that are positive and given so.
        fp: images that are given as positive, and are not.
        fn: images that are positive, and not given so.
        tn: the others.
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
    scores: Tensor, is_positive: Tensor, *, min_sensitivity: float, min_specificity: float
) -> tuple[OperatingPoint, ...]:
    """Choose a threshold by each rule; one that cannot be held is left out.

    A threshold lies midway between two scores that occur, so that the rounding of another runtime
    changes nothing. Of equally good ones, the one nearest to 0.5 is taken.

    - ``default``: 0.5.
    - ``youden``: the largest sum of sensitivity and specificity.
    - ``min_sensitivity``: the largest specificity of those that keep the sensitivity.
    - ``min_specificity``: the largest sensitivity of those that keep the specificity.

    Args:
        scores: ``[N]`` in [0, 1], probability of the positive class.
        is_positive: bool ``[N]``.
        min_sensitivity: in (0, 1].
        min_specificity: in (0, 1].

    Source: Youden 1950, "Index for rating diagnostic tests".
    """
    default = operating_point_at(scores, is_positive, DEFAULT, "default")
    if default.sensitivity is None or default.specificity is None:
        return (default,)
    thresholds, sensitivity, specificity = _all(scores, is_positive)
    chosen = (
        ("youden", sensitivity + specificity, torch.ones_like(sensitivity, dtype=torch.bool)),
        ("min_sensitivity", specificity, sensitivity >= min_sensitivity - 1e-12),
        ("min_specificity", sensitivity, specificity >= min_specificity - 1e-12),
    )

    def points() -> Iterator[OperatingPoint]:
        yield default
        for rule, goodness, is_allowed in chosen:
            if is_allowed.any():
                best = goodness[is_allowed].max()
                places = (is_allowed & (goodness >= best - 1e-12)).nonzero().flatten()
                nearest = places[(thresholds[places] - DEFAULT).abs().argmin()]
                yield operating_point_at(scores, is_positive, float(thresholds[nearest]), rule)

    return tuple(points())


def operating_point_at(
    scores: Tensor, is_positive: Tensor, threshold: float, rule: str
) -> OperatingPoint:
    """Say what a threshold gives on these images.

    Args:
        scores: as for `choose_operating_points`.
        is_positive: likewise.
        threshold: in (0, 1).
        rule: why this one.
    """
    if scores.shape != is_positive.shape or scores.ndim != 1:
        raise ValueError(
            f"scores and is_positive: got {list(scores.shape)} and {list(is_positive.shape)}, "
            "expected [N] of both."
        )
    truth = is_positive.cpu().bool()
    # As float32, as `finetune.prediction.decision` compares.
    limit = torch.tensor(threshold, dtype=torch.float32).double()
    given = scores.detach().cpu().double() >= limit
    tp, fp = int((given & truth).sum()), int((given & ~truth).sum())
    fn, tn = int((~given & truth).sum()), int((~given & ~truth).sum())
    return OperatingPoint(
        rule,
        threshold,
        sensitivity=_share(tp, tp + fn),
        specificity=_share(tn, tn + fp),
        positive_predictive_value=_share(tp, tp + fp),
        negative_predictive_value=_share(tn, tn + fn),
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
    )


def _all(scores: Tensor, is_positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give every threshold that tells scores apart, with its sensitivity and specificity."""
    numbers = scores.detach().cpu().double()
    truth = is_positive.cpu().bool()
    distinct = numbers.unique()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    edges = torch.cat([ends[:1], distinct, ends[1:]])
    thresholds = ((edges[1:] + edges[:-1]) / 2).float().double()
    # Of scores that float32 cannot tell apart, or of 0 and 1, none lies between.
    thresholds = thresholds[(thresholds > 0) & (thresholds < 1)].unique()
    positives, negatives = numbers[truth].sort().values, numbers[~truth].sort().values
    missed = torch.searchsorted(positives, thresholds).double()
    rejected = torch.searchsorted(negatives, thresholds).double()
    return thresholds, 1 - missed / len(positives), rejected / len(negatives)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
