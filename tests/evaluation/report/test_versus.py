"""The charts of a comparison."""

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.report.content import Value
from finetune.evaluation.report.svg import HEIGHT, WIDTH
from finetune.evaluation.report.versus import (
    LogAxis,
    Place,
    cost_chart,
    difference_strip,
    reach_of,
)

SHARES = st.integers(0, 1000).map(lambda number: number / 1000)
COSTS = st.floats(1e-3, 1e5)


def draw(places: list[Place]) -> str:
    return cost_chart(
        places, identity="speed", title="By speed", cost="ms", worth="accuracy", is_share=True
    )


@settings(max_examples=60)
@given(st.lists(st.tuples(COSTS, SHARES), min_size=1, max_size=9))
def test_every_model_is_on_the_chart_and_the_faster_one_further_left(found):
    places = [Place(f"m{i}", cost, Value(y), "equal") for i, (cost, y) in enumerate(found)]
    tree = ElementTree.fromstring(draw(places))
    circles = [(float(e.get("cx")), float(e.get("cy"))) for e in tree.iter("circle")]
    assert len(circles) == len(places)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in circles)
    for (x1, y1), one in zip(circles, places, strict=True):
        for (x2, y2), other in zip(circles, places, strict=True):
            if one.cost < other.cost:
                assert x1 <= x2
            if one.worth.value < other.worth.value:
                assert y1 >= y2


@settings(max_examples=60)
@given(st.lists(st.tuples(COSTS, SHARES), min_size=2, max_size=7))
def test_names_never_lie_over_each_other(found):
    places = [Place(f"m{i}", cost, Value(y), "equal") for i, (cost, y) in enumerate(found)]
    tree = ElementTree.fromstring(draw(places))
    names = [e for e in tree.iter("text") if e.get("class") == "name"]
    assert len(names) == len(places)
    corners = []
    for name in names:
        x, y = float(name.get("x")), float(name.get("y"))
        corners.append((x if name.get("text-anchor") == "start" else x - 14, y))
    for (x1, y1), (x2, y2) in combinations(corners, 2):
        assert abs(x1 - x2) > 13.5 or abs(y1 - y2) > 13.5


def test_a_model_without_a_worth_is_left_out():
    places = [Place("a", 1, Value(None), "unknown"), Place("b", 2, Value(0.5), "best")]
    assert draw(places).count("<circle") == 1
    assert draw(places[:1]) == ""


def test_names_are_escaped_and_cut():
    page = draw([Place("<b>" * 20, 1.0, Value(0.5), "best")])
    assert "<b>" not in page
    assert re.search(r">(&lt;b&gt;)+…?<|…<", page)


@given(COSTS, st.floats(1.01, 1e4))
def test_ticks_lie_within_the_axis(low, factor):
    axis = LogAxis("ms", low, low * factor)
    for number, words in axis.ticks():
        assert 0 <= axis.place(number) <= 1
        assert float(words) == pytest.approx(number)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1))
def test_all_strips_of_a_table_share_their_zero(found):
    values = [Value(middle, middle - low, middle + high) for middle, low, high in found]
    reach = reach_of(values)
    strips = [difference_strip(value, reach=reach, standing="equal") for value in values]
    zeros = set()
    for value, strip in zip(values, strips, strict=True):
        zero, line = ElementTree.fromstring(strip).iter("line")
        zeros.add(zero.get("x1"))
        crosses = float(line.get("x1")) <= float(zero.get("x1")) <= float(line.get("x2"))
        assert crosses or not value.low <= 0 <= value.high
        assert all(0 <= float(line.get(key)) <= 220 for key in ("x1", "x2"))
    assert len(zeros) == 1


def test_an_undefined_difference_has_no_strip():
    assert difference_strip(Value(None), reach=(-1, 1), standing="equal") == ""
    assert reach_of([Value(None)]) == (-1, 1)
