"""The confusion matrix as the page shows it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

LEVELS = 9
"""Shades of a cell."""


class Cell(NamedTuple):
    """Images of one class that were taken for one class.

    Attributes:
        images: so many.
        share: of the true class's images, in 0..1; None for a class without images.
        level: shade from 0 (no image) to ``LEVELS`` (all images of the class).
    """

    images: int
    share: float | None
    level: int


class Pair(NamedTuple):
    """Two classes, by index, and how often the first is taken for the second."""

    true: int
    predicted: int
    images: int
    share: float


def shade(confusion: Sequence[Sequence[int]]) -> list[list[Cell]]:
    """Give each cell its share of the row and its shade.

    The shade follows the root of the share, so that few mistakes of a good model are visible.

    Args:
        confusion: ``[C][C]`` counts as ``[true][predicted]``.
    """
    rows = []
    for counts in confusion:
        support = sum(counts)
        rows.append([_cell(count, support) for count in counts])
    return rows


def confused_pairs(confusion: Sequence[Sequence[int]], *, most: int) -> list[Pair]:
    """Give the pairs that are confused most often, and of these the larger share first.

    Args:
        confusion: ``[C][C]`` counts as ``[true][predicted]``.
        most: at most so many.
    """
    pairs = [
        Pair(true, predicted, count, count / sum(counts))
        for true, counts in enumerate(confusion)
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair.images, -pair.share))[:most]


def _cell(count: int, support: int) -> Cell:
    if not support:
        return Cell(count, None, 0)
    share = count / support
    return Cell(count, share, math.ceil(LEVELS * math.sqrt(share)))
