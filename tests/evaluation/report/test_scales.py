"""Ticks, thinned lines, and labels that do not lie on each other."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.report.scales import Axis, area_under, axis_around, pieces, spread, thin

numbers = st.floats(-1e6, 1e6)


@given(numbers, st.floats(1e-3, 1e6), st.sampled_from(["share", "number", "whole"]))
def test_ticks_are_round_few_and_within_the_ends(low: float, width: float, kind: str) -> None:
    axis = Axis("", low, low + width, kind)
    ticks = [number for number, _ in axis.ticks()]
    assert len(ticks) <= 7
    assert all(low - 1e-6 * width <= tick <= low + (1 + 1e-6) * width for tick in ticks)
    assert ticks == sorted(set(ticks))
    if kind == "whole":
        assert all(tick == round(tick) for tick in ticks)
    else:
        assert len(ticks) >= 2


def test_ticks_are_written_in_their_unit() -> None:
    assert [words for _, words in Axis("").ticks()] == [
        "0 %", "20 %", "40 %", "60 %", "80 %", "100 %",
    ]  # fmt: skip
    assert [words for _, words in Axis("", 0.94, 0.96).ticks()][:2] == ["94.0 %", "94.5 %"]
    assert [words for _, words in Axis("", 0, 3, "whole").ticks()] == ["0", "1", "2", "3"]
    assert [words for _, words in Axis("", 0, 4e-5, "number").ticks()][:2] == ["0", "1e-05"]


@given(st.lists(st.floats(allow_infinity=True, allow_nan=True, width=32), max_size=20))
def test_an_axis_holds_every_number(values: list[float]) -> None:
    for from_zero in (True, False):
        axis = axis_around("", values, "number", from_zero=from_zero)
        assert axis.low < axis.high
        finite = [value for value in values if math.isfinite(value)]
        assert all(axis.low <= value <= axis.high for value in finite)


def test_an_axis_of_shares_stays_within_0_and_1() -> None:
    axis = axis_around("", [0.001, 0.999], "share", from_zero=False)
    assert (axis.low, axis.high) == (0, 1)


points = st.lists(st.tuples(st.floats(0, 200), st.floats(0, 100)), max_size=200)


@given(points.map(sorted), st.floats(0.5, 10))
def test_a_thinned_line_keeps_ends_and_extremes(
    line: list[tuple[float, float]], column: float
) -> None:
    kept = thin(line, column)
    left = iter(line)
    assert all(point in left for point in kept)  # in their order
    assert len(kept) <= 4 * (200 / column + 1)
    if line:
        assert (kept[0], kept[-1]) == (line[0], line[-1])
        heights = [height for _, height in line]
        assert {min(heights), max(heights)} <= {height for _, height in kept}


def test_gaps_cut_a_line() -> None:
    line = [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0), (math.inf, 1.0)]
    assert pieces(line) == [[(0.0, 1.0)], [(2.0, 3.0)]]
    assert pieces([]) == []


def test_areas() -> None:
    assert area_under([(0, 0), (1, 1)]) == 0.5
    assert area_under([(1, 1), (0, 1)]) == 1  # from right to left, as precision and recall are
    assert area_under([(0.5, 1)]) == 0


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_labels_keep_their_distance_and_order(places: list[float]) -> None:
    moved = spread(places, gap=16, low=0, high=200)
    ordered = sorted(moved)
    assert all(after - before >= 16 - 1e-6 for before, after in pairwise(ordered))
    assert min(moved) >= -1e-6
    assert max(moved) <= max(200, 16 * (len(places) - 1)) + 1e-6
    if len(places) == 1:
        assert moved == places


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([100, 10, 50], gap=16, low=0, high=200) == [100, 10, 50]
    assert spread([50, 50], gap=16, low=0, high=60) == pytest.approx([44, 60])
