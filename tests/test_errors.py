import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import errors
from finetune.errors import FinetuneError, UserError, did_you_mean

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, FinetuneError)
]
WORDS = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=12)


def test_there_are_errors():
    assert len(KINDS) >= 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_of_the_user_ends_with_2_and_a_failed_run_with_1(kind):
    assert kind.exit_status == (2 if issubclass(kind, UserError) else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_in_the_docstring_is_complete(kind):
    assert f" {kind.__name__} " in (errors.__doc__ or "")


def test_an_unreadable_image_is_a_problem_of_the_data():
    assert issubclass(errors.ImageError, errors.DataError)


@pytest.mark.parametrize(
    ("word", "options", "hint"),
    [
        ("medcal", ["digits", "folder", "medical"], " Did you mean `medical`?"),
        ("ADAMW", ["adamw", "sgd"], " Did you mean `adamw`?"),
        ("adamw", ["AdamW", "SGD"], " Did you mean `AdamW`?"),
        ("optimizer.lrr", ["optimizer.lr", "optimizer.name"], " Did you mean `optimizer.lr`?"),
        ("zzz", ["digits", "folder"], ""),
        ("x", [], ""),
    ],
)
def test_the_nearest_word(word, options, hint):
    assert did_you_mean(word, options) == hint


def test_a_word_that_repeats_itself_is_forgiven_as_well():
    assert did_you_mean("bba", ["baba"]) == " Did you mean `baba`?"
    assert did_you_mean("aaaaaaaaab", ["aaaaabaaaab"]) == " Did you mean `aaaaabaaaab`?"


@given(WORDS, st.lists(WORDS, max_size=5))
def test_a_hint_names_an_option_or_nothing(word, options):
    assert did_you_mean(word, options) in {"", *(f" Did you mean `{o}`?" for o in options)}


@given(st.text("abcdefgh", min_size=4, max_size=12), st.data())
def test_one_letter_too_few_is_always_forgiven(word, data):
    index = data.draw(st.integers(0, len(word) - 1))
    assert did_you_mean(word[:index] + word[index + 1 :], [word]) == f" Did you mean `{word}`?"


@given(st.lists(WORDS, max_size=3))
def test_options_may_be_any_iterable(options):
    assert did_you_mean("word", iter([*options, "world"])) == " Did you mean `world`?"
