"""Scores of images drawn again and again, and intervals from these.

Shapes: ``U`` units, ``R`` resamples, ``C`` classes or labels. When which interval is right, and
whose they are, is said in `finetune.evaluation.intervals`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from finetune.evaluation.resampling import (
    Numbers,
    Ranking,
    Scores,
    Sums,
    calibration_noise,
    counted_scores,
    scores_of_rankings,
)

Ends = tuple[float, float]

_DEFINED = 0.9
_SAME = 1e-12
_CHUNK = 320_000
"""Weights held at once; more of them leave the processor's cache and cost time."""
_RANKED_WORK = 1_000_000_000
"""Images times classes times resamples that are ranked: some seconds."""
_FEWEST_RANKED = 100


class Drawn(NamedTuple):
    """Scores of U units (R = 1), of resamples, and `calibration_noise` of these, ``[R]``."""

    num_units: int
    measured: Scores
    resampled: Scores
    noise: Numbers


def draw_scores(
    sums: Sums, rankings: Sequence[Ranking], num_units: int, resamples: int, seed: int
) -> Drawn:
    """Score the images, and resamples of them.

    Args:
        sums: of all images.
        rankings: of each class.
        num_units: U; as many are drawn with replacement for a resample.
        resamples: R; with many images times classes, fewer of them are ranked.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    work = sums.num_images * len(rankings)
    to_rank = max(_FEWEST_RANKED, _RANKED_WORK // work)
    width = max(1, _CHUNK // num_units)
    counted, ranked, noise = [], [], []
    for start in range(0, resamples, width):
        weights = _weights(rng, num_units, min(width, resamples - start))
        counted.append(counted_scores(sums, weights))
        noise.append(calibration_noise(sums, weights))
        if start < to_rank:
            ranked.append(scores_of_rankings(sums.task, rankings, weights))
    once = np.ones((num_units, 1))
    return Drawn(
        num_units=num_units,
        measured=_beside(counted_scores(sums, once), scores_of_rankings(sums.task, rankings, once)),
        resampled=_beside(_joined(counted), _joined(ranked)),
        noise=np.concatenate(noise),
    )


def vary(values: Numbers) -> bool:
    """Tell whether a score is defined often enough, and is not always the same."""
    defined = values[np.isfinite(values)]
    return len(defined) >= _DEFINED * len(values) and bool(np.ptp(defined) > _SAME)


def between_percentiles(values: Numbers, measured: float, level: float) -> Ends:
    """Give the percentiles of resampled scores ``[R]``, or the measured one where it is outside."""
    low, high = _quantiles(values, level)
    return min(low, measured), max(high, measured)


def on_log_odds(values: Numbers, measured: float, level: float, *, units: int) -> Ends | None:
    """Give the measured score plus and minus its error, on a scale without ends.

    Args:
        values: of the resamples, ``[R]``.
        measured: None comes back for 0 and 1, which are infinitely far on that scale.
        level: in (0, 1).
        units: that the score hangs on; None comes back for fewer than two.
    """
    if units < 2 or not 0 < measured < 1:
        return None
    # What is drawn from few units varies by (units - 1) / units as much as what they come from.
    spread = float(np.nanstd(values)) * math.sqrt(units / (units - 1))
    quantile = float(student.ppf((1 + level) / 2, units - 1))
    step = quantile * spread / (measured * (1 - measured))
    low, high = expit(logit(measured) + np.array([-step, step])).tolist()
    return low, high


def of_calibration(values: Numbers, measured: float, level: float, *, noise: Numbers) -> Ends:
    """Give the ends for an expected calibration error, from it and its noise in resamples."""
    low, _ = _quantiles(values, level)
    _, chance = _quantiles(noise, level)
    return max(0.0, measured - chance), max(measured, 2 * measured - low)


def _quantiles(values: Numbers, level: float) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def _joined(parts: Sequence[Scores]) -> Scores:
    """Put the resamples of several draws into one."""
    overall, per_class = (
        {name: np.concatenate([part[place][name] for part in parts], axis=-1) for name in first}
        for place, first in enumerate(parts[0])
    )
    return Scores(overall, per_class)


def _beside(counted: Scores, ranked: Scores) -> Scores:
    return Scores(counted.overall | ranked.overall, counted.per_class | ranked.per_class)


def _weights(rng: np.random.Generator, num_units: int, resamples: int) -> Numbers:
    """Draw units with replacement, and say how often each was drawn: ``[U, R]``."""
    drawn = rng.integers(0, num_units, (num_units, resamples), dtype=np.int32)
    places = drawn * np.int64(resamples) + np.arange(resamples)
    counts = np.bincount(places.ravel(), minlength=num_units * resamples)
    return counts.reshape(num_units, resamples).astype(np.float64)
