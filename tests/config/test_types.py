"""The kinds of values: numbers, names, paths."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.types import (
    ExpandedPath,
    Fraction,
    Group,
    Number,
    Whole,
    Workers,
    expand_home,
)
from finetune.errors import ConfigError
from finetune.validation import validate


class Kinds(Group):
    number: Number = 0
    whole: Whole = 0
    fraction: Fraction = 1
    workers: Workers = 0
    path: ExpandedPath = Path()
    text: str = ""


def kept(key: str, value: Any) -> Any:
    return getattr(validate(Kinds, {key: value}), key)


def refusal(key: str, value: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        kept(key, value)
    return str(caught.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Kinds().number = 1.0  # type: ignore[misc]


def test_an_unknown_key_gets_the_nearest_word() -> None:
    assert refusal("worker", 2) == "worker: no such key. Did you mean `workers`?"


@pytest.mark.parametrize("key", ["number", "whole", "fraction", "workers"])
@pytest.mark.parametrize("value", [True, False, math.inf, -math.inf, math.nan, "x", [], {}, None])
def test_what_is_no_number_is_refused(key: str, value: Any) -> None:
    assert refusal(key, value).startswith(f"{key}: got ")


def test_true_is_not_taken_for_one() -> None:
    assert refusal("whole", True) == "whole: got true, expected a number."


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("whole", [-1, 10**9, 2.0, "7"], [0.5, "0.5"]),
        ("number", [-1, 0.5, "0.5"], ["1e999"]),
        ("fraction", [1e-9, 1], [0, 1.01, -0.1]),
        ("workers", [0, 256, "auto"], [-1, 257, 1.5, "all"]),
    ],
)
def test_ranges(key: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        assert kept(key, value) == (value if value == "auto" else float(value))
    for value in outside:
        assert refusal(key, value).startswith(f"{key}: got "), value


@given(st.floats())
def test_a_fraction_is_above_0_and_at_most_1(value: float) -> None:
    if 0 < value <= 1:
        assert kept("fraction", value) == value
    else:
        assert refusal("fraction", value).startswith("fraction: got ")


def test_a_number_where_text_belongs_becomes_text() -> None:
    assert kept("text", 2024) == "2024"


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(Path("~")) == Path("/home/me")
    assert expand_home(Path("~/a ~/b")) == Path("/home/me/a ~/b")
    assert expand_home(Path("a/~/b")) == Path("a/~/b")
    assert kept("path", "~/data") == Path("/home/me/data")


def test_a_folder_that_only_looks_like_somebodys_home_stays_as_it_is() -> None:
    assert expand_home(Path("~no such user/x")) == Path("~no such user/x")


def test_an_empty_path_is_not_the_current_folder() -> None:
    assert refusal("path", "") == "path: got nothing, expected a file or folder."


@given(st.text(min_size=1).filter(lambda text: "\0" not in text and text[0] != "~"))
def test_any_other_path_stays_as_it_is(text: str) -> None:
    assert kept("path", text) == Path(text)
