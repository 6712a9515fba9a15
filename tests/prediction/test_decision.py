from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import ConfigError
from finetune.models.answers import read_answers
from finetune.models.sets import prediction_sets, read_sets
from finetune.prediction.decision import Decision, read_decided, read_decided_sets

NAMES = ("no", "yes")
numbers = st.floats(0, 1, width=32)


@given(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=4))
def test_without_a_threshold_the_answers_are_the_models(rows: list[list[float]]) -> None:
    for task in ("multiclass", "multilabel"):
        decision = Decision(NAMES, task)  # type: ignore[arg-type]
        expected = read_answers(torch.tensor(rows), NAMES, task)  # type: ignore[arg-type]
        assert read_decided(torch.tensor(rows), decision) == expected


@given(numbers, st.floats(0.01, 0.99))
def test_the_second_of_two_classes_is_given_from_the_threshold_on(p: float, cut: float) -> None:
    decision = Decision(NAMES, "multiclass", threshold=cut)
    (answer,) = read_decided(torch.tensor([[1 - p, p]]), decision)
    is_second = torch.tensor(p) >= torch.tensor(cut)
    assert answer.labels == (NAMES[int(is_second)],)
    assert answer.probability == answer.probabilities[int(is_second)]


def test_a_less_probable_class_may_be_given() -> None:
    decision = Decision(NAMES, "multiclass", threshold=0.2)
    (answer,) = read_decided(torch.tensor([[0.75, 0.25]]), decision)
    assert (answer.labels, answer.probability) == (("yes",), 0.25)


def test_a_probability_that_equals_the_threshold_reaches_it() -> None:
    # 0.7 as float32 is smaller than as float64.
    (answer,) = read_decided(torch.tensor([[0.3, 0.7]]), Decision(NAMES, "multiclass", 0.7))
    assert answer.labels == ("yes",)


def test_each_of_several_labels_has_the_threshold() -> None:
    decision = Decision(("a", "b", "c"), "multilabel", threshold=0.25)
    (answer,) = read_decided(torch.tensor([[0.25, 0.125, 0.5]]), decision)
    assert answer.labels == ("a", "c")
    assert answer.probability == pytest.approx(0.25 * 0.875 * 0.5)


def test_a_threshold_for_more_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"threshold: got 0\.7 for a model of 3 classes.*abstain"):
        Decision(("a", "b", "c"), "multiclass", threshold=0.7)
    Decision(("a", "b", "c"), "multilabel", threshold=0.7)


def test_abstaining_is_for_less_probable_answers() -> None:
    decision = Decision(NAMES, "multiclass", abstain=0.8)
    assert [decision.abstains(p) for p in (0.79, 0.8, 0.81)] == [True, False, False]
    assert Decision(NAMES, "multiclass").abstains(0.1) is None


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4), numbers)
def test_sets_are_those_of_the_rule_and_none_where_nobody_asks(
    rows: list[list[float]], limit: float
) -> None:
    names, rule = ("a", "b", "c"), {"limit": limit, "penalty": 0.1, "free_ranks": 2}
    asked = Decision(names, "multiclass", sets=partial(read_sets, **rule))
    marked = prediction_sets(torch.tensor(rows), **rule)
    for found, row in zip(read_decided_sets(torch.tensor(rows), asked), marked, strict=True):
        assert set(found or ()) == {name for name, yes in zip(names, row, strict=True) if yes}
    assert read_decided_sets(torch.tensor(rows), Decision(names, "multiclass")) == [None] * len(
        rows
    )


def test_the_class_given_by_a_threshold_may_lie_outside_the_set() -> None:
    sets = partial(read_sets, limit=0.5, penalty=0, free_ranks=1)
    decision = Decision(NAMES, "multiclass", threshold=0.2, sets=sets)
    one = torch.tensor([[0.75, 0.25]])
    assert read_decided(one, decision)[0].labels == ("yes",)
    assert read_decided_sets(one, decision) == [("no",)]
