"""Numbers as they are written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.report.content import Value
from finetune.evaluation.report.wording import figure, interval, is_known, split_reason


@pytest.mark.parametrize(
    ("number", "is_share", "text"),
    [
        (0.94771, True, "94.8 %"),
        (0.0, True, "0.0 %"),
        (1.0, True, "100.0 %"),
        (0.158184, False, "0.158"),
        (2041.0, False, "2041"),
        (12.345, False, "12.3"),
        (0.0, False, "0.00"),
        (-0.5, False, "-0.500"),
        (1e-9, False, "0.000000"),
    ],
)
def test_figures(number: float, is_share: bool, text: str) -> None:
    assert figure(number, is_share) == text


@given(st.floats(0.001, 1e6))
def test_a_figure_keeps_three_digits_that_count(number: float) -> None:
    assert float(figure(number, is_share=False)) == pytest.approx(number, rel=0.0051)


def test_intervals_are_written_where_both_ends_are_known() -> None:
    assert interval(Value(0.948, 0.902, 0.976)) == "90.2 to 97.6"
    assert interval(Value(0.1582, 0.11, 0.2144), is_share=False) == "0.110 to 0.214"
    for value in (Value(0.5), Value(0.5, 0.1), Value(0.5, None, 0.9), Value(0.5, math.nan, 0.9)):
        assert interval(value) == ""


def test_what_is_no_number_is_not_known() -> None:
    assert [is_known(number) for number in (0.0, 1, None, math.nan, math.inf)] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("224 (what the backbone (ResNet) wants)", ("224", "what the backbone (ResNet) wants")),
        ("CPU, 2 cores", ("CPU, 2 cores", "")),
        ("a (b) c", ("a (b) c", "")),
        ("", ("", "")),
    ],
)
def test_a_decision_is_taken_apart(text: str, parts: tuple[str, str]) -> None:
    assert split_reason(text) == parts
