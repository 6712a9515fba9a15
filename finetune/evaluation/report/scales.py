"""Where numbers lie on a chart: axes, their ticks, and lines with no more points than are seen."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from finetune.evaluation.report.wording import figure

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale: its words, its ends (``low`` < ``high``), and how its numbers are written."""

    label: str
    low: float = 0.0
    high: float = 1.0
    kind: Literal["share", "number", "whole"] = "share"

    def place(self, number: float) -> float:
        """Give where a number lies, 0 at the low end and 1 at the high one."""
        return (number - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Give round numbers within the ends, and how they are written."""
        step = _round_step((self.high - self.low) / 5)
        step = max(1.0, step) if self.kind == "whole" else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        numbers = [index * step for index in range(first, last + 1)]
        return [(number, self._write(number, digits)) for number in numbers]

    def _write(self, number: float, digits: int) -> str:
        if self.kind == "share":
            return f"{100 * number:.{max(0, digits - 2)}f} %"
        if self.kind == "number" and digits > 3:
            return f"{number:.0e}" if number else "0"
        return f"{number:.{digits}f}"


def axis_around(
    label: str, numbers: Sequence[float], kind: Literal["share", "number"], *, from_zero: bool
) -> Axis:
    """Make an axis that holds ``numbers`` with a little air; those not finite are ignored."""
    finite = [number for number in numbers if math.isfinite(number)] or [0.0]
    low, high = min(finite), max(finite)
    low = min(0.0, low) if from_zero else low
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all are the same
        room = 0.05 * abs(low) or 0.1
        low, high = (low - room, high + room) if low else (0.0, room)
    air = 0.06 * (high - low)
    low = low if from_zero else low - air
    if kind == "share":  # no share lies beyond these
        return Axis(label, max(low, min(0.0, min(finite))), min(high + air, max(1.0, high)), kind)
    return Axis(label, low, high + air, kind)


def pieces(points: Sequence[Point]) -> list[list[Point]]:
    """Cut a line where a number is not finite."""
    runs = groupby(points, key=lambda point: math.isfinite(point[0]) and math.isfinite(point[1]))
    return [list(run) for is_finite, run in runs if is_finite]


def thin(points: Sequence[Point], column_px: float) -> list[Point]:
    """Leave out points that are not seen: of each column, the first, lowest, highest and last stay.

    Args:
        points: a line in pixels, all finite, in its order.
        column_px: width of a column, > 0.

    Source: Jugel et al. 2014, "M4: A visualization-oriented time series data aggregation".
    """
    return [
        point for _, run in groupby(points, lambda p: p[0] // column_px) for point in _seen(run)
    ]


def area_under(points: Sequence[Point]) -> float:
    """Give the area under a line by trapezoids, from left to right; 0 for fewer than two points."""
    ordered = sorted(point for piece in pieces(points) for point in piece)
    return sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(ordered))


def spread(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move labels apart, so that ``gap`` lies between any two, within ``low`` to ``high``.

    Where there is no room for all, they begin at ``low`` and go beyond ``high``.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    lowest = low
    for index in order:
        moved[index] = lowest = max(places[index], lowest)
        lowest += gap
    highest = max(high, low + gap * (len(places) - 1))
    for index in reversed(order):
        moved[index] = highest = min(moved[index], highest)
        highest -= gap
    return moved


def describe_number(axis: Axis, number: float) -> str:
    """Write a number as its axis does."""
    return figure(number, is_share=axis.kind == "share")


def _seen(run: Iterator[Point]) -> list[Point]:
    column = list(run)
    if len(column) <= 4:
        return column
    heights = [point[1] for point in column]
    lowest, highest = heights.index(min(heights)), heights.index(max(heights))
    return [column[index] for index in sorted({0, lowest, highest, len(column) - 1})]


def _round_step(rough: float) -> float:
    """Give the smallest of 1, 2 and 5 times a power of ten that is not below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
