"""Charts as SVG inside the page: colours and dashes come from its style sheet, by class.

A line has one of seven colours, dashes and markers; the classes are ``line-0`` to ``line-6``, and
``line-rest`` for those that only give the background. Texts are escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from markupsafe import Markup

from finetune.evaluation.proportions import Proportion, exact_limits
from finetune.evaluation.report.content import Bin, Series
from finetune.evaluation.report.scales import (
    Axis,
    Point,
    area_under,
    describe_number,
    pieces,
    spread,
    thin,
)
from finetune.evaluation.report.svg import (
    HEIGHT,
    NOTHING,
    WIDTH,
    figure_element,
    marker,
    px,
    rule,
    text,
)

MOST_COLOURED = 7
MOST_LINES = 50
"""Of more lines, only these with the smallest area below them are drawn."""
_EMPHASISED = 3
_FEW_POINTS = 30
_TOP, _BOTTOM, _LEFT, _RIGHT = 30, 46, 52, 16
_LABEL_WIDTH = 150
_LABEL_LETTERS = 20
_LINE_HEIGHT = 16


class Mark(NamedTuple):
    """A place on a chart that has a name; without ``y`` it is a line from top to bottom."""

    x: float
    name: str
    y: float | None = None


@dataclass(frozen=True, slots=True)
class _Frame:
    """The area of a chart, in pixels."""

    x: Axis
    y: Axis
    right: float

    def at(self, x: float, y: float) -> Point:
        across, up = self.x.place(x), self.y.place(y)
        floor = HEIGHT - _BOTTOM
        return _LEFT + across * (self.right - _LEFT), floor - up * (floor - _TOP)


def line_chart(
    series: Sequence[Series],
    *,
    identity: str,
    title: str,
    x: Axis,
    y: Axis,
    diagonal: str = "",
    mark: Mark | None = None,
    names: Literal["below", "end", "none"] = "below",
) -> Markup:
    """Draw lines, with their names at their ends or in a legend below.

    Of more than seven lines, the three with the smallest area below them keep their colours and
    names, and the others become the background.

    Args:
        series: at least one.
        identity: unique on the page; made of letters, digits and hyphens.
        title: above the chart.
        x: the axis across; numbers beyond its ends are drawn beyond them.
        y: the axis upwards.
        diagonal: what a line from corner to corner means; empty for no such line.
        mark: a place to point at.
        names: of the lines stand in a legend below, at their last points, or nowhere.

    Returns:
        A ``figure`` element.
    """
    chosen, rest = _emphasise(series)
    right = WIDTH - (_LABEL_WIDTH if names == "end" else _RIGHT)
    frame = _Frame(x, y, right)
    drawing = [_axes(frame), _diagonal(frame, diagonal)]
    drawing += [_line(frame, one, "line-rest", column_px=4) for one in rest]
    for index, one in enumerate(chosen):
        # A long line that is alone needs no marker to be told apart.
        is_marked = len(chosen) > 1 or len(one.x) <= _FEW_POINTS
        drawing.append(_line(frame, one, f"line-{index}", index=index if is_marked else None))
    drawing.append(_marked(frame, mark))
    if names == "end":
        drawing.append(_end_labels(frame, chosen))
    told = _describe(chosen, x, y) + (f" {mark.name}." if mark else "")
    legend = _legend(chosen, rest, len(series)) if names == "below" else NOTHING
    return figure_element(NOTHING.join(drawing), identity, title, told, legend)


def reliability_chart(bins: Sequence[Bin], *, identity: str, title: str) -> Markup:
    """Draw how often answers of a confidence are right; on the diagonal they keep their word.

    A circle's area is the share of all images in its bin, its whisker the exact 95 % interval.

    Args:
        bins: those without images are left out.
        identity: as in `line_chart`.
        title: above the chart.

    Returns:
        A ``figure`` element.
    """
    frame = _Frame(Axis("confidence of the answer"), Axis("share that is right"), WIDTH - _RIGHT)
    full = [one for one in bins if one.count > 0]
    most = max((one.count for one in full), default=1)
    drawing = [_axes(frame), _diagonal(frame, "as it should be")]
    for share, words, anchor in ((0.96, "too cautious", "start"), (0.05, "too sure", "end")):
        place = frame.at(0.02 if anchor == "start" else 0.98, share)
        drawing.append(text(*place, words, anchor, "aside"))
    for one in full:
        low, high = likely_share(one)
        (across, lower), (_, upper) = frame.at(one.confidence, low), frame.at(one.confidence, high)
        drawing.append(
            Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                px(across), px(lower), px(upper)
            )
        )
        radius = 3 + 8 * math.sqrt(one.count / most)
        _, middle = frame.at(one.confidence, one.accuracy)
        drawing.append(
            Markup('<circle class="bin" cx="{}" cy="{}" r="{}"/>').format(
                px(across), px(middle), px(radius)
            )
        )
    told = "; ".join(
        f"at {100 * one.confidence:.0f} % confidence {100 * one.accuracy:.0f} % of "
        f"{one.count} images are right"
        for one in full
    )
    return figure_element(NOTHING.join(drawing), identity, title, f"{told}.", NOTHING)


def likely_share(one: Bin) -> tuple[float, float]:
    """Give the exact 95 % interval of the share that is right in a bin; 0 to 1 without images."""
    hits = round(one.accuracy * one.count)
    right = np.arange(one.count) < hits
    limits = exact_limits(Proportion(right.astype(np.float64), np.ones(one.count)), 0.95)
    return (0.0, 1.0) if limits is None else (limits.low, limits.high)


def _emphasise(series: Sequence[Series]) -> tuple[list[Series], list[Series]]:
    """Divide lines into those with a name and those of the background."""
    if len(series) <= MOST_COLOURED:
        return list(series), []
    areas = [area_under(list(zip(one.x, one.y, strict=True))) for one in series]
    order = sorted(range(len(series)), key=lambda index: areas[index])
    chosen = [series[index] for index in order[:MOST_LINES]]
    return chosen[:_EMPHASISED], chosen[_EMPHASISED:]


def _axes(frame: _Frame) -> Markup:
    floor, right = HEIGHT - _BOTTOM, frame.right
    parts = [
        text(_LEFT - 44, 16, frame.y.label, "start", "axis"),
        text((_LEFT + right) / 2, HEIGHT - 8, frame.x.label, "middle", "axis"),
    ]
    for number, words in frame.y.ticks():
        _, height = frame.at(frame.x.low, number)
        parts.append(rule(_LEFT, right, height, height))
        parts.append(text(_LEFT - 7, height + 4, words, "end", "tick"))
    for number, words in frame.x.ticks():
        across, _ = frame.at(number, frame.y.low)
        parts.append(rule(across, across, floor, _TOP))
        parts.append(text(across, floor + 17, words, "middle", "tick"))
    return NOTHING.join(parts)


def _diagonal(frame: _Frame, words: str) -> Markup:
    if not words:
        return NOTHING
    (left, low), (right, high) = (
        frame.at(frame.x.low, frame.y.low),
        frame.at(frame.x.high, frame.y.high),
    )
    line = Markup('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        px(left), px(low), px(right), px(high)
    )
    angle = math.degrees(math.atan2(high - low, right - left))
    at = (px(left + 0.3 * (right - left)), px(low + 0.3 * (high - low)))
    return line + Markup(
        '<text class="aside" text-anchor="middle" transform="translate({} {}) rotate({})" dy="-5">'
        "{}</text>"
    ).format(*at, px(angle), words)


def _line(
    frame: _Frame, one: Series, name: str, *, index: int | None = None, column_px: float = 1
) -> Markup:
    """Draw a line, and the markers of ``index`` on it."""
    parts = []
    for piece in pieces(list(zip(one.x, one.y, strict=True))):
        seen = thin([frame.at(*point) for point in piece], column_px)
        path = " ".join(f"{px(x)},{px(y)}" for x, y in seen)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(name, path))
        if index is not None:
            # Markers on long lines are few, and each line has them elsewhere.
            step = 1 if len(seen) <= _FEW_POINTS else len(seen) // 7
            start = 0 if step == 1 else (index * step // 4) % step
            parts += [marker(index, *point) for point in seen[start::step]]
    return NOTHING.join(parts)


def _marked(frame: _Frame, mark: Mark | None) -> Markup:
    if mark is None:
        return NOTHING
    across, height = frame.at(mark.x, frame.y.low if mark.y is None else mark.y)
    is_left = across < (_LEFT + frame.right) / 2
    side, anchor = (8, "start") if is_left else (-8, "end")
    if mark.y is None:
        line = Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            px(across), HEIGHT - _BOTTOM, _TOP
        )
        return line + text(across + side / 2, _TOP - 5, mark.name, anchor, "name")
    ring = Markup('<circle class="mark" cx="{}" cy="{}" r="6"/>').format(px(across), px(height))
    return ring + text(across + side * 1.4, max(height - 10, _TOP + 12), mark.name, anchor, "name")


def _end_labels(frame: _Frame, series: Sequence[Series]) -> Markup:
    ends = []
    for index, one in enumerate(series):
        finite = _finite(one)
        if finite:
            ends.append((index, one.name, frame.at(*finite[-1])))
    heights = spread(
        [height for _, _, (_, height) in ends],
        gap=_LINE_HEIGHT,
        low=_TOP + 4,
        high=HEIGHT - _BOTTOM,
    )
    parts = []
    for (index, name, (across, height)), moved in zip(ends, heights, strict=True):
        parts.append(
            Markup('<polyline class="leader line-{}" points="{},{} {},{} {},{}"/>').format(
                index,
                px(across),
                px(height),
                px(frame.right + 8),
                px(moved),
                px(frame.right + 14),
                px(moved),
            )
        )
        parts.append(text(frame.right + 17, moved + 4, _cut(name), "start", "name"))
    return NOTHING.join(parts)


def _legend(chosen: Sequence[Series], rest: Sequence[Series], total: int) -> Markup:
    rows = [(index, one.name) for index, one in enumerate(chosen)]
    swatch = Markup(
        '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true" focusable="false">'
        '<line class="line {}" x1="1" x2="33" y1="6" y2="6"/>{}</svg>'
    )
    items = [
        Markup("<li>{}<bdi>{}</bdi></li>").format(
            swatch.format(f"line-{index}", marker(index, 17, 6)), name
        )
        for index, name in rows
    ]
    if rest:
        left = total - len(chosen) - len(rest)
        more = f"; {left} better ones are not drawn" if left else ""
        words = f"{len(rest)} others, with more area below them{more}"
        items.append(Markup("<li>{}{}</li>").format(swatch.format("line-rest", NOTHING), words))
    return Markup('<ul class="legend">{}</ul>').format(NOTHING.join(items))


def _describe(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Say in words where each line begins and ends."""
    told = []
    for one in series:
        finite = _finite(one)
        if finite:
            first, last = (describe_number(y, point[1]) for point in (finite[0], finite[-1]))
            told.append(f"{one.name} from {first} to {last}")
    return f"{y.label} by {x.label}: {'; '.join(told)}."


def _cut(name: str) -> str:
    return name if len(name) <= _LABEL_LETTERS else f"{name[: _LABEL_LETTERS - 1]}…"


def _finite(series: Series) -> list[Point]:
    points = pieces(list(zip(series.x, series.y, strict=True)))
    return [point for piece in points for point in piece]
