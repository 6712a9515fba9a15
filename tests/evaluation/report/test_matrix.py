"""Shades and pairs of a confusion matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from finetune.evaluation.report.matrix import LEVELS, confused_pairs, shade

matrices = st.integers(1, 6).flatmap(
    lambda count: arrays.arrays(np.int64, (count, count), elements=st.integers(0, 30))
)


@given(matrices)
def test_shares_of_a_row_add_up_to_1_and_more_is_never_lighter(counts: np.ndarray) -> None:
    for row, cells in zip(counts.tolist(), shade(counts.tolist()), strict=True):
        assert [cell.images for cell in cells] == row
        assert all((cell.level > 0) == (cell.images > 0) for cell in cells)
        if not sum(row):
            assert {cell.share for cell in cells} == {None}
            continue
        assert sum(cell.share or 0 for cell in cells) == pytest.approx(1)
        ordered = sorted(cells)
        assert [cell.level for cell in ordered] == sorted(cell.level for cell in ordered)
        assert max(cell.level for cell in cells) <= LEVELS


@given(matrices, st.integers(0, 40))
def test_pairs_are_the_cells_beside_the_diagonal_most_first(counts: np.ndarray, most: int) -> None:
    pairs = confused_pairs(counts.tolist(), most=most)
    beside = counts[~np.eye(len(counts), dtype=bool)]
    assert [pair.images for pair in pairs] == sorted(beside[beside > 0], reverse=True)[:most]
    for pair in pairs:
        assert pair.true != pair.predicted
        assert counts[pair.true, pair.predicted] == pair.images
        assert pair.share == pytest.approx(pair.images / counts[pair.true].sum())


def test_equal_counts_put_the_larger_share_first() -> None:
    pairs = confused_pairs([[8, 2, 0], [2, 0, 0], [0, 0, 5]], most=2)
    assert [(pair.true, pair.predicted) for pair in pairs] == [(1, 0), (0, 1)]
    assert shade([[0, 4], [1, 3]])[0][1].level == LEVELS
