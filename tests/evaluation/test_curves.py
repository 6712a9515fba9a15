"""Points of ROC and precision–recall curves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from finetune.evaluation.curves import precision_recall_points, roc_points

rows = st.lists(
    st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=60
)


def parted(pairs: list[tuple[float, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])


@settings(max_examples=200)
@given(rows)
def test_they_are_scikit_learns(pairs: list[tuple[float, bool]]) -> None:
    scores, is_true = parted(pairs)
    roc, both = roc_points(scores, is_true), precision_recall_points(scores, is_true)
    if is_true.all() or not is_true.any():
        assert roc is None
        assert both is None
        return
    assert roc is not None
    assert both is not None
    fpr, tpr, _ = roc_curve(is_true.numpy(), scores.numpy(), drop_intermediate=False)
    assert np.allclose(roc, (fpr, tpr))
    precision, recall, _ = precision_recall_curve(is_true.numpy(), scores.numpy())
    # Theirs run the other way, and end at a precision of 1 where ours goes on at the first.
    assert np.allclose(both[0], recall[::-1])
    assert np.allclose(both[1][1:], precision[-2::-1])
    assert both[1][0] == both[1][1]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 3))
def test_thinning_changes_no_area_and_keeps_the_ends(seed: int, gap: float) -> None:
    rng = np.random.default_rng(seed)
    is_true = torch.from_numpy(rng.random(3000) < 0.3)
    scores = torch.from_numpy(rng.normal(0, 1, 3000)) + gap * is_true
    found = roc_points(scores, is_true, max_points=200)
    assert found is not None
    x, y = found
    assert len(x) <= 200
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(is_true, scores), abs=0.005)
    both = precision_recall_points(scores, is_true, max_points=200)
    assert both is not None
    assert len(both[0]) <= 200
    assert both[0][-1] == 1


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="expected"):
        roc_points(torch.zeros(2), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="max_points"):
        roc_points(torch.tensor([0.1, 0.9, 0.4]), torch.tensor([True, False, True]), max_points=1)
