import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from finetune.evaluation.curves import precision_recall_points, roc_points

relaxed = settings(deadline=None, max_examples=50)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores of any number of images, good and bad, with and without ties, of both classes."""
    n = draw(st.sampled_from([2, 5, 40, 3000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    is_true = rng.random(n) < draw(st.sampled_from([0.02, 0.5, 0.9]))
    is_true[:2] = [True, False]
    scores = rng.normal(size=n) + is_true * draw(st.sampled_from([-1.0, 0.0, 1.0, 4.0]))
    if draw(st.booleans()):
        scores = scores.round()
    return torch.from_numpy(1 / (1 + np.exp(-scores))), torch.from_numpy(is_true)


@relaxed
@given(cases())
def test_the_area_of_the_thinned_roc_is_the_auroc(case: tuple[Tensor, Tensor]) -> None:
    points = roc_points(*case)
    assert points is not None
    x, y = points
    assert len(x) == len(y) <= 200
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(case[1], case[0]), abs=0.005)


@relaxed
@given(cases())
def test_the_area_of_the_thinned_precision_is_the_average(case: tuple[Tensor, Tensor]) -> None:
    points = precision_recall_points(*case)
    assert points is not None
    x, y = points
    assert len(x) == len(y) <= 200
    assert (x[0], x[-1]) == (0, 1)
    # At the lowest threshold, every image is called.
    assert y[-1] == pytest.approx(case[1].double().mean().item())
    assert (np.diff(x) >= 0).all()
    area = float((np.diff(x) * y[1:]).sum())
    assert area == pytest.approx(average_precision_score(case[1], case[0]), abs=0.02)


def test_few_points_are_all_kept() -> None:
    scores, is_true = torch.tensor([0.9, 0.8, 0.6, 0.2]), torch.tensor([True, False, True, False])
    assert roc_points(scores, is_true) == ((0, 0, 0.5, 0.5, 1), (0, 0.5, 0.5, 1, 1))
    assert precision_recall_points(scores, is_true) == (
        (0, 0.5, 0.5, 1, 1),
        (1, 1, 0.5, 2 / 3, 0.5),
    )


def test_a_wrong_highest_score_shows_as_no_precision() -> None:
    points = precision_recall_points(torch.tensor([0.9, 0.8]), torch.tensor([False, True]))
    assert points is not None
    assert (points[0][0], points[1][0]) == (0, 0)


@pytest.mark.parametrize("truth", [True, False])
def test_one_class_has_no_curve(truth: bool) -> None:
    scores, is_true = torch.tensor([0.2, 0.8]), torch.tensor([truth, truth])
    assert roc_points(scores, is_true) is None
    assert precision_recall_points(scores, is_true) is None


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="max_points"):
        roc_points(torch.tensor([0.2, 0.8]), torch.tensor([False, True]), max_points=3)
