"""Near-duplicates: the same picture in other bytes, such as encoded again or resized.

`MAX_DISTANCE` stands between what ``benchmarks/duplicates.py`` measured on three public data sets:
of 1,150 copies (JPEG and WebP of quality 30 to 95, PNG, 0.4 to 2 times the size), 99 % lie within
0.043 of their original and all within 0.079; the closest of 5,808 chest X-rays of different persons
are 0.176 apart, the closest of 397 photographs of insects 0.60. Copies of images below about 64 px
lie farther away, and part of them is missed.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

MAX_DISTANCE = 0.08

# With 12 of them, one in 2,000 of 100,000 images like chest X-rays is compared in vain.
_TREE_DIMENSIONS = 12
_BLOCK = 2048


def find_near_duplicates(
    fingerprints: npt.NDArray[np.float16], *, max_distance: float = MAX_DISTANCE
) -> tuple[tuple[int, ...], ...]:
    """Find the sets that chains of pairs within ``max_distance`` of each other connect.

    A tree over the first principal components, in which no distance is larger than in full, takes
    out what has no neighbour; the rest is compared pair by pair in blocks. So time is quadratic
    only in the number of images that look like another, and memory is linear whatever they are.

    Args:
        fingerprints: ``[N, D]``.
        max_distance: Euclidean, > 0.

    Returns:
        Sets of two or more indices, each ascending, ordered by their first.
    """
    if len(fingerprints) < 2:
        return ()
    centred = fingerprints.astype(np.float32)
    centred -= centred.mean(axis=0)
    kept = np.flatnonzero(_has_neighbour(centred, max_distance))
    labels = _connect(centred[kept], max_distance)
    order = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[order])) + 1
    sets = [tuple(kept[part].tolist()) for part in np.split(order, borders) if len(part) > 1]
    return tuple(sorted(sets))


def _has_neighbour(points: npt.NDArray[np.float32], max_distance: float) -> npt.NDArray[np.bool_]:
    """Tell of each of ``[N, D]`` whether another may lie within ``max_distance``."""
    _, directions = np.linalg.eigh(points.T @ points)
    projected = points @ directions[:, -_TREE_DIMENSIONS:]
    tree = cKDTree(projected)
    # The slack is for the rounding of float32.
    counts = tree.query_ball_point(projected, max_distance * 1.001, return_length=True, workers=-1)
    return np.asarray(counts > 1)


def _connect(points: npt.NDArray[np.float32], max_distance: float) -> npt.NDArray[np.int32]:
    """Number the connected components of ``[N, D]``; ``[N]``."""
    labels = np.arange(len(points), dtype=np.int32)
    # The product of a row of one and a row of the other is minus half their squared distance.
    half, ones = (points**2).sum(axis=1, keepdims=True) / -2, np.ones((len(points), 1), np.float32)
    left, right = np.hstack([points, half, ones]), np.hstack([points, ones, half])
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(points), _BLOCK)]
    # Neighbours in the list first: a film, or ten thousand copies, are one set after that.
    for offset in range(len(blocks)):
        for rows, columns in zip(blocks, blocks[offset:], strict=False):
            is_open = labels[rows, None] != labels[None, columns]
            if is_open.any():
                is_close = is_open & (left[rows] @ right[columns].T >= max_distance**2 / -2)
                while is_close.any():
                    some, others = _pick(is_close)
                    labels = _merge(labels, labels[rows][some], labels[columns][others])
                    is_close &= labels[rows, None] != labels[None, columns]
    return labels


def _pick(is_close: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Take one pair of each row and of each column that has any: indices of rows, of columns.

    All pairs of many copies would be too many. These few leave at most half of the sets that a
    block can join apart, as in the algorithm of Borůvka (1926).
    """
    rows = np.flatnonzero(is_close.any(axis=1))
    columns = np.flatnonzero(is_close.any(axis=0))
    return (
        np.concatenate([rows, is_close[:, columns].argmax(axis=0)]),
        np.concatenate([is_close[rows].argmax(axis=1), columns]),
    )


def _merge(
    labels: npt.NDArray[np.int32], some: npt.NDArray[np.int32], others: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Give ``some[i]`` and ``others[i]`` one label, and so on along chains."""
    edges = coo_array((np.ones(len(some)), (some, others)), shape=(len(labels), len(labels)))
    _, merged = connected_components(edges, directed=False)
    return np.asarray(merged[labels], dtype=np.int32)
