"""Charts of a comparison: what a model is worth by what it costs, and who leads by how much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from finetune.evaluation.report.content import Value
from finetune.evaluation.report.scales import Axis, axis_around, describe_number
from finetune.evaluation.report.svg import HEIGHT, NOTHING, WIDTH, figure_element, px, rule, text
from finetune.evaluation.report.wording import is_known

_TOP, _BOTTOM, _LEFT, _RIGHT = 30, 46, 52, 22
_LABEL_GAP = 15
_LABEL_LETTERS = 22
_STRIP_WIDTH = 220


class Place(NamedTuple):
    """A model on the chart: its name, what it costs (> 0), what it is worth, and its class."""

    name: str
    cost: float
    worth: Value
    standing: str


@dataclass(frozen=True, slots=True)
class LogAxis:
    """A scale on which each factor of ten is as long as any other; ``low`` < ``high``, both > 0."""

    label: str
    low: float
    high: float

    def place(self, number: float) -> float:
        """Give where a number lies, 0 at the low end and 1 at the high one."""
        return math.log(number / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Give round numbers within the ends, fewer for each power of ten where these are many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ratio = self.high / self.low
        factors = (1, 1.5, 2, 3, 5, 7) if ratio < 8 else (1, 2, 5) if ratio < 500 else (1,)
        numbers = [factor * 10.0**power for power in powers for factor in factors]
        return [(number, f"{number:g}") for number in numbers if self.low <= number <= self.high]


def cost_chart(
    places: Sequence[Place], *, identity: str, title: str, cost: str, worth: str, is_share: bool
) -> Markup:
    """Draw what each model is worth, with its interval, by what it costs.

    Args:
        places: those without a worth are left out.
        identity: unique on the page; made of letters, digits and hyphens.
        title: above the chart.
        cost: words of the axis across, with the unit.
        worth: words of the axis upwards.
        is_share: the worth is a percentage.

    Returns:
        A ``figure`` element; nothing where no model can be drawn.
    """
    shown = [place for place in places if is_known(place.worth.value)]
    if not shown:
        return NOTHING
    across = _cost_axis(cost, [place.cost for place in shown])
    ends = [end for place in shown for end in _ends(place.worth)]
    up = axis_around(worth, ends, "share" if is_share else "number", from_zero=False)
    points = [_point(across, up, place) for place in shown]
    drawing = [_axes(across, up), *_labels(shown, points)]
    for place, (x, y) in zip(shown, points, strict=True):
        low, high = (_height(up, end) for end in _ends(place.worth))
        drawing.append(
            Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                px(x), px(low), px(high)
            )
        )
        drawing.append(
            Markup('<circle class="model {}" cx="{}" cy="{}" r="5"/>').format(
                place.standing, px(x), px(y)
            )
        )
    told = "; ".join(
        f"{place.name}: {describe_number(up, place.worth.value or 0.0)} at {place.cost:.3g}"
        for place in shown
    )
    return figure_element(
        NOTHING.join(drawing), identity, title, f"{worth} by {cost}: {told}.", NOTHING
    )


def difference_strip(value: Value, *, reach: tuple[float, float], standing: str) -> Markup:
    """Draw a difference and its interval beside zero; nothing if undefined.

    It repeats what stands beside it in words, so that it is hidden from screen readers.

    Args:
        value: the difference.
        reach: from `reach_of`, the same for every strip of a table.
        standing: class of the point.
    """
    if value.value is None or not is_known(value.value):
        return NOTHING
    left, right = reach
    places = [
        px(8 + (_STRIP_WIDTH - 16) * (number - left) / (right - left))
        for number in (*_ends(value), value.value, 0.0)
    ]
    return Markup(
        '<svg class="difference" viewBox="0 0 {width} 20" aria-hidden="true" focusable="false">'
        '<line class="zero" x1="{3}" x2="{3}" y1="0" y2="20"/>'
        '<line class="range" x1="{0}" x2="{1}" y1="10" y2="10"/>'
        '<circle class="model {standing}" cx="{2}" cy="10" r="5"/></svg>'
    ).format(*places, width=_STRIP_WIDTH, standing=standing)


def reach_of(values: Sequence[Value]) -> tuple[float, float]:
    """Say what lies at either end of the strips of several differences: zero, too."""
    ends = [end for value in values if is_known(value.value) for end in _ends(value)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (-1.0, 1.0)


def _ends(value: Value) -> tuple[float, float]:
    middle = value.value or 0.0
    low, high = (middle if end is None else end for end in (value.low, value.high))
    return low, high


def _cost_axis(words: str, costs: Sequence[float]) -> LogAxis:
    low, high = min(costs), max(costs)
    spread_of_all = max(high / low, 2.0)
    air = spread_of_all**0.12
    middle = math.sqrt(low * high)
    return LogAxis(
        words, middle / math.sqrt(spread_of_all) / air, middle * math.sqrt(spread_of_all) * air
    )


def _point(across: LogAxis, up: Axis, place: Place) -> tuple[float, float]:
    x = _LEFT + across.place(place.cost) * (WIDTH - _RIGHT - _LEFT)
    return x, _height(up, place.worth.value or 0.0)


def _height(up: Axis, number: float) -> float:
    floor = HEIGHT - _BOTTOM
    return floor - up.place(number) * (floor - _TOP)


def _axes(across: LogAxis, up: Axis) -> Markup:
    floor, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [
        text(_LEFT - 44, 16, up.label, "start", "axis"),
        text((_LEFT + right) / 2, HEIGHT - 8, across.label, "middle", "axis"),
    ]
    for number, words in up.ticks():
        parts.append(rule(_LEFT, right, _height(up, number), _height(up, number)))
        parts.append(text(_LEFT - 7, _height(up, number) + 4, words, "end", "tick"))
    for number, words in across.ticks():
        x = _LEFT + across.place(number) * (right - _LEFT)
        parts.append(rule(x, x, floor, _TOP))
        parts.append(text(x, floor + 17, words, "middle", "tick"))
    return NOTHING.join(parts)


def _labels(places: Sequence[Place], points: Sequence[tuple[float, float]]) -> list[Markup]:
    """Write each name beside its point, where no other name and no point is if there is room."""
    taken = [_Box(x - 6, x + 6, y - 6, y + 6) for x, y in points]
    parts = []
    for place, (x, y) in zip(places, points, strict=True):
        name = place.name
        cut = name if len(name) <= _LABEL_LETTERS else f"{name[: _LABEL_LETTERS - 1]}…"
        tried = [
            _beside(x, y + lines * _LABEL_GAP, 7 * len(cut), is_left=is_left)
            for lines in (0, -1, 1, -2, 2, -3, 3, -4, 4)
            for is_left in (False, True)
        ]
        inside = [box for box in tried if box.left > _LEFT and box.right < WIDTH] or tried[:1]
        free = [box for box in inside if not any(box.meets(other) for other in taken)]
        box = (free or inside)[0]
        taken.append(box)
        is_left, middle = box.right < x, (box.top + box.bottom) / 2
        edge, anchor = (box.right, "end") if is_left else (box.left, "start")
        if abs(middle - y) > 1:
            parts.append(
                Markup('<line class="lead" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                    px(x), px(y), px(edge), px(middle)
                )
            )
        parts.append(text(edge, middle + 4, cut, anchor, "name"))
    return parts


class _Box(NamedTuple):
    """A part of the chart, in pixels."""

    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        """Tell whether any place is in both."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def _beside(x: float, y: float, width: float, *, is_left: bool) -> _Box:
    left = x - 9 - width if is_left else x + 9
    return _Box(left, left + width, y - 7, y + 7)
