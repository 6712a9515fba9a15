"""The images that look most like another one, by the angle between their features.

Shapes: ``M`` queries among ``N`` images, ``F`` features, ``k`` neighbours of each query.
"""

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK = 1 << 22
"""Similarities that are held at once."""


def nearest(
    queries: Tensor, features: Tensor, *, count: int, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest images of each query, the most similar first.

    The similarity is the cosine; that of a vector of zeros is 0. Of equally similar images, any
    may come first.

    Args:
        queries: ``[M, F]``, finite.
        features: ``[N, F]``, finite.
        count: at most so many neighbours, >= 1; there are fewer where ``N`` is small.
        exclude: ``[M]`` int64, for each query a place in ``features`` that is not returned: its
            own, say.

    Returns:
        Places in ``features`` ``[M, k]`` int64, and similarities ``[M, k]`` float32 in [-1, 1];
        ``k`` is ``count``, or N less what is excluded.
    """
    if queries.ndim != 2 or features.ndim != 2 or queries.shape[1] != features.shape[1]:
        raise ValueError(
            f"queries and features: got {list(queries.shape)} and {list(features.shape)}, "
            "expected [M, F] and [N, F]."
        )
    if count < 1:
        raise ValueError(f"count: got {count}, expected >= 1.")
    if exclude is not None and exclude.shape != queries.shape[:1]:
        raise ValueError(f"exclude: got {list(exclude.shape)} of {len(queries)} queries.")
    k = max(0, min(count, len(features) - (exclude is not None)))
    indices = torch.zeros(len(queries), k, dtype=torch.int64)
    similarity = torch.zeros(len(queries), k)
    if not k:
        return indices, similarity
    # The features themselves are not copied.
    lengths = torch.linalg.vector_norm(features.float(), dim=1).clamp(min=1e-12)
    size = max(1, _CHUNK // len(features))
    for first in range(0, len(queries), size):
        rows = slice(first, first + size)
        cosines = functional.normalize(queries[rows].float(), dim=1) @ features.float().T / lengths
        if exclude is not None:
            cosines.scatter_(1, exclude[rows].unsqueeze(1), -torch.inf)
        similarity[rows], indices[rows] = cosines.topk(k, dim=1)
    return indices, similarity.clamp(-1, 1)
