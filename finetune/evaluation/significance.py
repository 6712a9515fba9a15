"""Whether one model is better than another, asked about the same images.

Shapes: ``N`` images, ``C`` classes, ``U`` units (groups of images that belong together, or single
images), ``R`` resamples.

A `Score` is a function from weights ``[2 U, R]`` to ``[R]`` floats, NaN where undefined: the
metric of ``R`` reweighted sets of answers. The first ``U`` rows weight the units as the first
model answers them, the others the same units as the second one does.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy.stats import binomtest, rankdata
from torch import Tensor

from finetune.evaluation.resampling import (
    Numbers,
    Units,
    counted_scores,
    prepare_rankings,
    prepare_sums,
    scores_of_rankings,
)
from finetune.models.answers import Task

Score = Callable[[Numbers], Numbers]

SIGNIFICANT = 0.05
RANKED = ("auroc", "mean_average_precision")
"""Metrics of the order of the images by probability."""
_CHUNK = 320_000
"""Weights held at once; more of them leave the processor's cache and cost time."""
_CLOSE = 1e-12
"""Two differences nearer than that are the same, computed in another order."""


def mcnemar(only_first: int, only_second: int) -> float:
    """Test whether two models are right equally often, and return the two-sided p value.

    Exact: where just one of them is right, it should be either with equal chance. For images that
    are independent of each other; see `swap_test` for others.

    Args:
        only_first: images on which the first alone is right.
        only_second: images on which the second alone is right.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated
    proportions"; the exact form as in Dietterich 1998.
    """
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def sign_interval(only_first: int, only_second: int, num_images: int) -> tuple[float, float]:
    """Give the 95 % interval of the second model's share right minus the first's, as by `mcnemar`.

    The number of images on which one alone is right is taken as given: exact for which of the two
    it is, and it holds zero just where p is above 0.05.

    Source: Clopper & Pearson 1934; Fagerland, Lydersen & Laake 2014 on conditional intervals.
    """
    discordant = only_first + only_second
    if not discordant:
        return 0.0, 0.0
    share = binomtest(only_second, discordant).proportion_ci(0.95, method="exact")
    scale = discordant / num_images
    return float(2 * share.low - 1) * scale, float(2 * share.high - 1) * scale


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number, so that one in twenty such families errs at 0.05.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def number_units(groups: Sequence[str | None]) -> Units:
    """Number what is drawn together: each group, and each image without one; ``[N]`` in 0..U-1."""
    keys = [(index, None) if group is None else (-1, group) for index, group in enumerate(groups)]
    numbers: dict[tuple[int, str | None], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def paired_score(
    metric: str, first: Tensor, second: Tensor, targets: Tensor, *, task: Task, units: Units
) -> Score:
    """Make the `Score` of a metric from what two models say about the same images.

    A ranking metric gets each model's ranks: the probabilities of two models have no common
    scale, and it needs none.

    Args:
        metric: a name in `finetune.evaluation.metrics.Metrics`, or in ``MultilabelMetrics``.
        first: the first model's probabilities ``[N, C]``.
        second: the second's.
        targets: classes ``[N]``, or labels ``[N, C]`` with ``multilabel``.
        task: what the probabilities mean.
        units: ``[N]``, from `number_units`.

    Raises:
        KeyError: there is no such metric of sums or ranks.
    """
    both = np.concatenate([units, units + units.max() + 1])
    twice = torch.cat([targets, targets])
    if metric in RANKED:
        rankings = prepare_rankings(torch.cat([_ranks(first), _ranks(second)]), twice, units=both)
        return lambda weights: scores_of_rankings(task, rankings, weights).overall[metric]
    sums = prepare_sums(torch.cat([first, second]).double(), twice, task=task, units=both)
    return lambda weights: counted_scores(sums, weights).overall[metric]


def _ranks(probabilities: Tensor) -> Tensor:
    """Put ranks in (0, 1] in place of the numbers of each column; equal ones share their mean."""
    return torch.from_numpy(rankdata(probabilities.numpy(), axis=0) / len(probabilities))


def difference(score: Score, num_units: int) -> float:
    """Give the second model's metric minus the first's; NaN where undefined."""
    (value,) = _second_minus_first(score, np.ones((num_units, 1)), np.zeros((num_units, 1)))
    return float(value)


def paired_bootstrap(
    score: Score, num_units: int, *, resamples: int, seed: int = 0
) -> tuple[float, float] | None:
    """Give the 95 % interval of the second model's metric minus the first's.

    Units are drawn with replacement, the same ones for both models; percentiles of the
    differences, without those that are undefined.

    Args:
        score: of both models.
        num_units: U.
        resamples: R.
        seed: of the draws.

    Returns:
        None where no difference is defined.

    Source: Efron & Tibshirani 1993, chapter 13; on paired draws Koehn 2004.
    """
    rng = np.random.default_rng(seed)

    def draw(columns: int) -> Numbers:
        equal = np.full(num_units, 1 / num_units)
        return rng.multinomial(num_units, equal, columns).T.astype(np.float64)

    found = [
        _second_minus_first(score, weights, np.zeros_like(weights))
        for weights in _chunks(draw, resamples, num_units)
    ]
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def swap_test(score: Score, num_units: int, *, resamples: int, seed: int = 0) -> float | None:
    """Test whether two models are equally good, and return the two-sided p value.

    If they are, it does not matter which of them gave which answer: the answers are swapped in
    half of the units at random, and p is the share of swaps that make as large a difference as
    the one found, which itself counts as one. All ways to swap are tried where these are few.

    Args:
        score: of both models.
        num_units: U.
        resamples: R.
        seed: of the swaps.

    Returns:
        None where the difference is undefined.

    Source: Fisher 1935; Good 2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses";
    of ranks for areas under curves: Bandos, Rockette & Gur 2005.
    """
    found = abs(difference(score, num_units))
    if math.isnan(found):
        return None
    values = np.concatenate(
        [
            np.abs(_second_minus_first(score, 1 - swapped, swapped))
            for swapped in _swaps(num_units, resamples, seed)
        ]
    )
    as_large = int((values >= found - _CLOSE).sum())
    return as_large / int((~np.isnan(values)).sum())


def _swaps(num_units: int, resamples: int, seed: int) -> Iterator[Numbers]:
    """Say which units are swapped, ``[U, R]``: none first, then at random; all ways if few."""
    if num_units <= math.log2(resamples):
        ways = np.arange(2**num_units)
        yield (ways >> np.arange(num_units)[:, None] & 1).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    yield np.zeros((num_units, 1))

    def draw(columns: int) -> Numbers:
        return (rng.random((columns, num_units)) < 0.5).T.astype(np.float64)

    yield from _chunks(draw, resamples, num_units)


def _second_minus_first(score: Score, own: Numbers, swapped: Numbers) -> Numbers:
    """Score both models ``[R]``, where ``swapped`` units ``[U, R]`` have the other's answers."""
    first = score(np.concatenate([own, swapped]))
    return score(np.concatenate([swapped, own])) - first


def _chunks(draw: Callable[[int], Numbers], resamples: int, num_units: int) -> Iterator[Numbers]:
    columns = max(1, _CHUNK // (2 * num_units))
    for start in range(0, resamples, columns):
        yield draw(min(columns, resamples - start))
