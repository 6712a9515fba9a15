"""Intervals of proportions that hold with few images, where resampling would not.

A bootstrap cannot draw a mistake that was never made: with none among 20 images it says 100 % to
100 %, and with few it is too narrow. The exact interval asks instead which true proportions would
make such counts improbable.

Shapes: ``U`` units, which are independent of each other; the images of a unit need not be.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

ENOUGH = 10
"""Units with a success, and units with a failure, from which on resampling is relied on.

The usual condition for a normal approximation; Brown, Cai & DasGupta 2001, "Interval estimation
for a binomial proportion", show how narrow such intervals are below it.
"""


class Proportion(NamedTuple):
    """Successes among trials, ``[U]`` each; a unit may have no trial."""

    successes: npt.NDArray[np.float64]
    trials: npt.NDArray[np.float64]

    @property
    def fewest(self) -> tuple[int, int]:
        """Count the units with a success, and those with a failure."""
        failures = self.trials - self.successes
        return int((self.successes > 0).sum()), int((failures > 0).sum())


class Limits(NamedTuple):
    """What was measured, and the ends of its interval."""

    value: float
    low: float
    high: float


def exact_limits(proportion: Proportion, level: float) -> Limits | None:
    """Give the Clopper-Pearson interval; None without a trial.

    Where units have several trials, these count as if all of a unit came out alike, which is the
    worst that they can do: the number of trials is that of units of equal weight,
    ``(sum of trials)^2 / (sum of squared trials)``. With one trial per unit that changes nothing.

    Args:
        proportion: what was counted.
        level: of the interval, in (0, 1).

    Source: Kish 1965, "Survey Sampling", on the effective number.
    """
    trials = float(proportion.trials.sum())
    if not trials:
        return None
    value = float(proportion.successes.sum()) / trials
    number = trials**2 / float((proportion.trials**2).sum())
    return Limits(value, *clopper_pearson(value * number, (1 - value) * number, level))


def clopper_pearson(hits: float, misses: float, level: float) -> tuple[float, float]:
    """Give the exact interval of the probability of a hit; neither count needs to be whole.

    Source: Clopper & Pearson 1934, "The use of confidence or fiducial limits illustrated in the
    case of the binomial".
    """
    tail = (1 - level) / 2
    return (
        float(beta.ppf(tail, hits, misses + 1)) if hits else 0.0,
        float(beta.ppf(1 - tail, hits + 1, misses)) if misses else 1.0,
    )


def jaccard_to_f1(limits: Limits) -> Limits:
    """Turn the limits of TP / (TP + FP + FN), a proportion, into those of F1, which grows with it.

    F1 = 2 TP / (2 TP + FP + FN) = 2 J / (1 + J).
    """
    return Limits(*(2 * value / (1 + value) for value in limits))


def limits_of_mean(parts: Sequence[Limits], *, shared: int) -> Limits:
    """Give the interval of the mean of several scores from their own intervals.

    The distances from the values to the ends add up as standard errors do: squared, where the
    parts are independent.

    Args:
        parts: at least one.
        shared: how many parts one image may touch; 1 if they are independent. ``k`` dependent
            terms vary together at most ``k`` times as much as independent ones.

    Source: Zou, Huang & Zhang 2009, "A note on confidence interval estimation for a linear
    function of binomial proportions" (MOVER).
    """
    value, low, high = np.array(parts).T
    widening = np.sqrt(min(shared, len(parts))) / len(parts)
    mean = float(value.mean())
    return Limits(
        mean,
        low=max(0.0, mean - float(np.linalg.norm(value - low) * widening)),
        high=min(1.0, mean + float(np.linalg.norm(high - value) * widening)),
    )


def perfect_ranking_limits(area: float, pairs: int, level: float) -> Limits | None:
    """Give the interval of an AUROC of 0 or 1; None without a pair.

    Independent pairs of a positive and a negative, none of whose images are used twice, come in
    the right order with a probability of the AUROC each, and all of them did.

    Args:
        area: 0 or 1.
        pairs: such pairs that can be formed.
        level: of the interval, in (0, 1).
    """
    all_alike = Proportion(np.full(pairs, area), np.ones(pairs))
    return exact_limits(all_alike, level)


def is_scarce(parts: Sequence[Proportion]) -> bool:
    """Tell whether the mean of proportions rests on too few units for resampling.

    It does if fewer than ``ENOUGH`` units of all parts together are right, or wrong. A single part
    matters as far as the mean hangs on it: of two, one with fewer than five such units does; of
    more than ten, none does.
    """
    if not parts:
        return False
    fewest = np.array([part.fewest for part in parts])
    return bool(fewest.sum(0).min() < ENOUGH or (fewest.min() + 1) * len(parts) <= ENOUGH)
