"""When a model should say nothing: its error on the answers that are left.

Shapes: ``N`` images, ``K`` thresholds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_LEFT_OUT = 0.5
"""A threshold that leaves more images out than this is no help."""


@dataclass(frozen=True)
class RiskCoverage:
    """What each threshold leaves, from the strictest to none.

    Attributes:
        threshold: ``[K]``, falling: images at least so sure are answered.
        coverage: ``[K]``, share answered, in (0, 1]; the last is 1.
        risk: ``[K]``, share of the answered that are wrong.
        area: mean risk over all coverages (AURC).
    """

    threshold: Tensor
    coverage: Tensor
    risk: Tensor
    area: float


@dataclass(frozen=True)
class Abstention:
    """A threshold, and what it brings on some images.

    Attributes:
        threshold: answers less probable than this are left out, in (0, 1].
        coverage: share of the images that are answered.
        error: share of the answered that are wrong; None where none is answered.
        error_without: the same of all.
        images: N.
    """

    threshold: float
    coverage: float
    error: float | None
    error_without: float
    images: int


def risk_coverage(confidence: Tensor, is_right: Tensor) -> RiskCoverage:
    """Give the error among the answered for every threshold; images of one confidence go together.

    Args:
        confidence: ``[N]``, of the answers; N >= 1.
        is_right: bool ``[N]``.

    Source: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification";
    the area: Geifman et al. 2018, "Bias-reduced uncertainty estimation for deep neural
    classifiers".
    """
    if not len(confidence) or confidence.shape != is_right.shape:
        raise ValueError(
            f"confidence and is_right: got {list(confidence.shape)} and {list(is_right.shape)}, "
            "expected [N] of both, N >= 1."
        )
    sure, order = confidence.detach().cpu().double().sort(descending=True, stable=True)
    wrong = (~is_right.cpu().bool())[order].double().cumsum(0)
    answered = torch.arange(1, len(sure) + 1, dtype=torch.float64)
    is_last = torch.ones(len(sure), dtype=torch.bool)
    is_last[:-1] = sure[1:] != sure[:-1]
    risk = (wrong / answered)[is_last]
    coverage = (answered / len(sure))[is_last]
    steps = torch.diff(coverage, prepend=torch.zeros(1, dtype=torch.float64))
    return RiskCoverage(sure[is_last], coverage, risk, float((risk * steps).sum()))


def choose_threshold(
    confidence: Tensor, is_right: Tensor, *, max_error: float | None
) -> Abstention | None:
    """Choose the threshold that leaves out the fewest images and keeps the error.

    It lies midway between the least sure image that is answered and the surest that is not. These
    are never so close that the rounding of another runtime changes which is which.

    On other images, expect a somewhat larger error than here, where the threshold was chosen.

    Args:
        confidence: ``[N]``, of the answers, in [0, 1].
        is_right: bool ``[N]``.
        max_error: of the answers that are left, in [0, 1); None for half of the error of all.

    Returns:
        None where `why_no_threshold` has a reason.
    """
    curve = risk_coverage(confidence, is_right)
    place = _place(curve, _wanted(curve, max_error))
    if place is None:
        return None
    return Abstention(
        threshold=float(curve.threshold[place : place + 2].mean()),
        coverage=float(curve.coverage[place]),
        error=float(curve.risk[place]),
        error_without=float(curve.risk[-1]),
        images=len(confidence),
    )


def why_no_threshold(confidence: Tensor, is_right: Tensor, *, max_error: float | None) -> str:
    """Say in a sentence why there is no threshold; empty where there is one.

    Args:
        confidence: as for `choose_threshold`.
        is_right: likewise.
        max_error: likewise.
    """
    curve = risk_coverage(confidence, is_right)
    error, wanted = float(curve.risk[-1]), _wanted(curve, max_error)
    if _place(curve, wanted) is not None:
        return ""
    if not error:
        return "No threshold for abstention: no answer on validation is wrong."
    if error <= wanted:
        return f"No threshold for abstention: the error is {error:.1%} already without one."
    return (
        f"No threshold for abstention: to bring the error from {error:.1%} to {wanted:.1%}, "
        "more than half of the images would have to be left out."
    )


def apply_threshold(confidence: Tensor, is_right: Tensor, threshold: float) -> Abstention:
    """Say what a threshold that was chosen elsewhere brings on these images, N >= 1."""
    is_answered = confidence.detach().cpu().double() >= threshold
    wrong = ~is_right.cpu().bool()
    answered = int(is_answered.sum())
    return Abstention(
        threshold=threshold,
        coverage=answered / len(wrong),
        error=int((wrong & is_answered).sum()) / answered if answered else None,
        error_without=float(wrong.double().mean()),
        images=len(wrong),
    )


def _wanted(curve: RiskCoverage, max_error: float | None) -> float:
    return float(curve.risk[-1]) / 2 if max_error is None else max_error


def _place(curve: RiskCoverage, wanted: float) -> int | None:
    """Find the last threshold that keeps the error; None where none should be used."""
    if curve.risk[-1] <= wanted:
        return None
    surer, less = curve.threshold[:-1], curve.threshold[1:]
    # How far a runtime may be off: logits by 1e-5, and a few roundings of float32 on top.
    noise = surer * (1e-5 * (1 - surer).clamp(min=0) + 2.5e-7)
    is_fine = (curve.risk[:-1] <= wanted + 1e-12) & (surer - less > noise)
    places = (is_fine & (curve.coverage[:-1] >= 1 - MOST_LEFT_OUT)).nonzero().flatten()
    return int(places[-1]) if len(places) else None
