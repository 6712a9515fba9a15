import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.models.sets import prediction_sets, read_sets, set_scores

NAMES = ["ant", "bee", "wasp", "fly", "moth"]


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Probabilities, often with ties and zeros."""
    count, classes = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    weights = draw(
        st.lists(
            st.lists(st.sampled_from([0, 0, 1, 1, 2, 5, 17]), min_size=classes, max_size=classes),
            min_size=count,
            max_size=count,
        )
    )
    numbers = torch.tensor(weights, dtype=torch.float64)
    numbers[:, -1] += (numbers.sum(1) == 0).double()
    return numbers / numbers.sum(1, keepdim=True)


rules = st.tuples(st.sampled_from([0.0, 0.01, 0.1, 1.0]), st.integers(1, 3))


def test_by_hand():
    row = torch.tensor([[0.1, 0.6, 0.3]])
    plain = set_scores(row, penalty=0, free_ranks=1)
    assert plain.tolist()[0] == pytest.approx([0.9, 0, 0.6])
    penalised = set_scores(row, penalty=0.5, free_ranks=1)
    assert penalised.tolist()[0] == pytest.approx([0.9 + 1, 0, 0.6 + 0.5])
    later = set_scores(row, penalty=0.5, free_ranks=2)
    assert later.tolist()[0] == pytest.approx([0.9 + 0.5, 0, 0.6])
    assert prediction_sets(row, limit=0.7, penalty=0, free_ranks=1).tolist() == [
        [False, True, True]
    ]


@given(rows(), rules)
def test_a_score_is_what_stands_before(probabilities: Tensor, rule: tuple[float, int]) -> None:
    penalty, free_ranks = rule
    scores = set_scores(probabilities, penalty=penalty, free_ranks=free_ranks)
    assert scores.dtype == torch.float64
    for row, found in zip(probabilities.tolist(), scores.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda index: -row[index])
        before = 0.0
        for rank, index in enumerate(order, start=1):
            assert found[index] == pytest.approx(before + penalty * max(0, rank - free_ranks))
            before += row[index]
        # Exactly: a class is never in a set without those that are more probable.
        assert [found[index] for index in order] == sorted(found)


@given(rows(), rules, st.floats(0, 1.2), st.floats(0, 1.2))
def test_sets_hold_the_answer_and_grow_with_the_limit(
    probabilities: Tensor, rule: tuple[float, int], one: float, other: float
) -> None:
    small, large = (
        prediction_sets(probabilities, limit=limit, penalty=rule[0], free_ranks=rule[1])
        for limit in sorted((one, other))
    )
    assert small.gather(1, probabilities.argmax(1, keepdim=True)).all()
    assert (small <= large).all()


@given(rows(), rules, st.floats(0, 1.2))
def test_names_are_those_of_the_set_the_likeliest_first(
    probabilities: Tensor, rule: tuple[float, int], limit: float
) -> None:
    names = NAMES[: probabilities.shape[1]]
    asked = {"limit": limit, "penalty": rule[0], "free_ranks": rule[1]}
    marked = prediction_sets(probabilities, **asked)
    for row, marks, found in zip(
        probabilities, marked, read_sets(probabilities, names, **asked), strict=True
    ):
        assert set(found) == {name for name, yes in zip(names, marks, strict=True) if yes}
        places = [names.index(name) for name in found]
        assert places == sorted(places, key=lambda index: (-float(row[index]), index))
        assert places[0] == int(row.argmax())


def test_a_long_tail_scores_no_less_than_what_stands_before_it():
    """Subtracting a class's own probability again would leave rounding."""
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(50, 1000, generator=generator) * 4).softmax(1)
    scores = set_scores(probabilities, penalty=0, free_ranks=1)
    order = probabilities.double().argsort(dim=1, descending=True, stable=True)
    assert (scores.gather(1, order).diff(dim=1) >= 0).all()
