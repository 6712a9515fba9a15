"""Elements of charts."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.report.content import Value
from finetune.evaluation.report.svg import interval_strip, px, text


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_strip_has_its_value_within_its_ends(a: float, b: float, c: float) -> None:
    low, middle, high = sorted((a, b, c))
    strip = str(interval_strip(Value(middle, low, high)))
    ElementTree.fromstring(strip)
    (left, right), (dot,) = (
        re.findall(r'class="range" x1="([\d.]+)" x2="([\d.]+)"', strip)[0],
        re.findall(r'cx="([\d.]+)"', strip),
    )
    assert 2 <= float(left) <= float(dot) <= float(right) <= 98
    assert float(dot) == pytest.approx(2 + 96 * middle, abs=0.051)


def test_a_strip_without_ends_is_a_dot_and_without_a_value_nothing() -> None:
    assert 'x1="50" x2="50"' in interval_strip(Value(0.5))
    assert interval_strip(Value(None)) == ""
    assert interval_strip(Value(float("nan"), 0, 1)) == ""


@given(st.floats(-1e4, 1e4))
def test_pixels_are_short_and_near(number: float) -> None:
    assert float(px(number)) == pytest.approx(number, abs=0.0501)
    assert not px(number).endswith(".0")


def test_words_are_escaped() -> None:
    assert text(1, 2, "<b>&\"'", "end", "tick") == (
        '<text class="tick" x="1" y="2" text-anchor="end">&lt;b&gt;&amp;&#34;&#39;</text>'
    )
