"""Which images a person should look at."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.cases import cell_members, doubts, sure_and_right, sure_mistakes

SURE = torch.tensor([0.9, 0.5, 0.8, 0.99, 0.7])
RIGHT = torch.tensor([False, True, False, True, True])


def test_mistakes_come_by_certainty() -> None:
    assert sure_mistakes(SURE, RIGHT, count=5) == [0, 2]
    assert sure_mistakes(SURE, RIGHT, count=1) == [0]
    assert sure_mistakes(SURE, torch.ones(5, dtype=torch.bool), count=3) == []


def test_doubts_come_by_doubt_right_or_wrong() -> None:
    assert doubts(SURE, count=3) == [1, 4, 2]
    assert doubts(SURE, count=9) == [1, 4, 2, 0, 3]


def test_right_answers_come_from_each_class_in_turn() -> None:
    targets = torch.tensor([0, 0, 1, 1, 1])
    assert sure_and_right(SURE, RIGHT, targets, count=9) == [1, 3, 4]
    assert sure_and_right(SURE, RIGHT, targets, count=2) == [1, 3]
    assert sure_and_right(SURE, RIGHT, torch.eye(2)[targets], count=2) == [1, 3]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    st.integers(0, 40),
)
def test_cells_hold_their_own_images_and_every_mistake_has_its_turn(
    pairs: list[tuple[int, int]], total: int
) -> None:
    truths = torch.tensor([pair[0] for pair in pairs], dtype=torch.int64)
    given_ = torch.tensor([pair[1] for pair in pairs], dtype=torch.int64)
    sure = torch.linspace(0.5, 1, len(pairs))
    cells = cell_members(truths, given_, sure, wrong=5, right=2, total=total)
    members = [(cell, index) for cell, indices in cells.items() for index in indices]
    assert len(members) <= total
    for cell, index in members:
        assert pairs[index] == cell
    for (truth, taken), indices in cells.items():
        assert len(indices) <= (2 if truth == taken else 5)
        assert list(indices) == sorted(indices, reverse=True)
    wrong = {pair for pair in pairs if pair[0] != pair[1]}
    if total >= len(wrong):
        assert wrong <= set(cells)
