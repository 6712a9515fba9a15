"""Groups of mistakes that look alike to the network.

Shapes: ``N`` images, ``F`` features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics.pairwise import cosine_distances
from torch import Tensor

QUANTILE = 0.1
"""Mistakes are alike if they are as near as this share of the pairs of their class."""
MAX_MISTAKES = 2_000
"""Of one kind: more would take memory that grows with their square."""
_MAX_SAMPLE = 1_000


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Images of one class that were taken for another one, and look alike.

    Attributes:
        truth: their class.
        given: what they were taken for.
        members: their places, at least two; the one most like the others comes first.
    """

    truth: int
    given: int
    members: tuple[int, ...]


def group_failures(
    features: Tensor, truths: Tensor, given: Tensor, *, quantile: float = QUANTILE
) -> tuple[FailureGroup, ...]:
    """Group the mistakes of each kind (true class, class given) by their features, largest first.

    Mistakes are joined bottom up while the mean distance between two groups is less than a limit:
    the distance that the nearest ``quantile`` of all pairs of images of their true class, right
    or wrong, do not exceed. The distance is one less the cosine, of features less their
    mean. A mistake without any other near it is in no group.

    Of very many mistakes of one kind, the first ``MAX_MISTAKES`` are grouped; the limit of a
    class comes from at most 1,000 of its images. The same arguments give the same groups.

    Args:
        features: ``[N, F]``, finite, of all images that were measured, right or wrong.
        truths: ``[N]`` int64, the true classes.
        given: ``[N]`` int64, what the model said.
        quantile: in (0, 1); more joins more.

    Returns:
        Groups of two or more; of equally large ones, in the order of truth and given.

    Source: average linkage, Sokal and Michener 1958, as in scikit-learn's
    ``AgglomerativeClustering``.
    """
    if features.ndim != 2 or not len(features) == len(truths) == len(given):
        raise ValueError(
            f"features, truths and given: got {list(features.shape)}, {list(truths.shape)} and "
            f"{list(given.shape)}, expected [N, F], [N] and [N]."
        )
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: got {quantile}, expected a number in (0, 1).")
    wrong = (truths != given).nonzero().flatten()
    if len(wrong) < 2:
        return ()
    mean = features.mean(dim=0)
    groups = []
    for truth in sorted(set(truths[wrong].tolist())):
        limit = _limit(features[_some_of(truths == truth)] - mean, quantile)
        for taken in sorted(set(given[wrong[truths[wrong] == truth]].tolist())):
            places = wrong[(truths[wrong] == truth) & (given[wrong] == taken)][:MAX_MISTAKES]
            members = _join(features[places] - mean, limit)
            groups += [FailureGroup(truth, taken, tuple(places[m].tolist())) for m in members]
    return tuple(sorted(groups, key=lambda group: (-len(group.members), group.truth, group.given)))


def _some_of(is_chosen: Tensor) -> Tensor:
    """Give the places that are marked, of many every second, third or so."""
    places = is_chosen.nonzero().flatten()
    return places[:: -(-len(places) // _MAX_SAMPLE)]


def _limit(features: Tensor, quantile: float) -> float:
    distances = _distances(features)
    pairs = distances[np.triu_indices(len(distances), 1)]
    return float(np.quantile(pairs, quantile)) if len(pairs) else 0.0


def _join(features: Tensor, limit: float) -> list[npt.NDArray[np.int64]]:
    """Give the members of each group of two or more, the most central one first."""
    if len(features) < 2:
        return []
    distances = _distances(features)
    # Less the rounding, so that a class's only pair, which is the limit, is never near.
    limit = max(0.0, limit - 1e-12)
    clusters = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=limit
    ).fit_predict(distances)
    groups = [np.flatnonzero(clusters == number) for number in range(clusters.max() + 1)]
    return [
        members[distances[np.ix_(members, members)].sum(1).argsort(kind="stable")]
        for members in groups
        if len(members) > 1
    ]


def _distances(features: Tensor) -> npt.NDArray[np.float64]:
    """Give one less the cosine of each pair, in 0..2: ``[n, F]`` to ``[n, n]``; 1 with zeros."""
    distances: npt.NDArray[np.float64] = cosine_distances(features.double().numpy())
    return distances
