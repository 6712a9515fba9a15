import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torch import Tensor

from finetune.errors import DataError, FinetuneError
from finetune.evaluation.multilabel import multilabel_metrics
from finetune.evaluation.scores import (
    class_aurocs,
    class_average_precisions,
    count,
    describe_classes,
)

# A time limit per example fails on a busy machine.
relaxed = settings(deadline=None, max_examples=40)
thorough = settings(deadline=None, max_examples=200)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Probabilities with ties, and labels that no image, some, or every image shows."""
    num_classes, n = draw(st.integers(1, 5)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = draw(
        st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=num_classes, max_size=num_classes)
    )
    numbers = rng.integers(0, 11, (n, num_classes)) / 10 if draw(st.booleans()) else None
    probabilities = torch.from_numpy(rng.random((n, num_classes)) if numbers is None else numbers)
    return probabilities, torch.from_numpy(rng.random((n, num_classes)) < shares).float()


def same(ours: float | None, theirs: float) -> bool:
    return np.isnan(theirs) if ours is None else bool(np.isclose(ours, theirs, atol=1e-6))


@thorough
@given(cases())
def test_scores_equal_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    names = [f"label {index}" for index in range(case[0].shape[1])]
    ours = multilabel_metrics(*case, names)
    probabilities, targets = case[0].numpy(), case[1].numpy() > 0
    given_ = probabilities >= 0.5
    assert ours.n == len(targets)
    assert ours.exact_match == pytest.approx((given_ == targets).all(1).mean())
    assert ours.hamming_accuracy == pytest.approx(1 - sk.hamming_loss(targets, given_))
    is_true = case[1].bool()
    assert ours.per_class == describe_classes(
        names,
        count(case[0] >= 0.5, is_true),
        class_aurocs(case[0], is_true),
        class_average_precisions(case[0], is_true),
    )
    assert ours.absent_classes == tuple(row.name for row in ours.per_class if not row.support)


@thorough
@given(cases())
def test_classes_and_means_equal_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    num_classes = case[0].shape[1]
    ours = multilabel_metrics(*case, [str(index) for index in range(num_classes)])
    # scikit-learn takes one column alone for something else than a label.
    blank = np.zeros((len(case[0]), 1), bool)
    targets = np.hstack([case[1].numpy() > 0, blank])
    is_given = np.hstack([case[0].numpy() >= 0.5, blank])
    every, present = np.arange(num_classes), np.flatnonzero(targets.any(0))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        targets, is_given, labels=every, zero_division=np.nan
    )
    for index, row in enumerate(ours.per_class):
        assert row.support == support[index]
        assert same(row.precision, precision[index])
        assert same(row.recall, recall[index])
        assert same(row.f1, f1[index] if support[index] else np.nan)
    for score, by_class in (
        (ours.macro_precision, precision[present]),
        (ours.macro_recall, recall[present]),
        (ours.macro_f1, f1[present]),
    ):
        defined = by_class[~np.isnan(by_class)]
        assert same(score, defined.mean() if len(defined) else np.nan)


@thorough
@given(cases())
def test_rankings_equal_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    ours = multilabel_metrics(*case, [str(index) for index in range(case[0].shape[1])])
    for row, scores, targets in zip(ours.per_class, case[0].T, case[1].T, strict=True):
        is_true = targets.numpy() > 0
        if is_true.any() and not is_true.all():
            assert same(row.auroc, sk.roc_auc_score(is_true, scores))
            assert same(row.average_precision, sk.average_precision_score(is_true, scores))
        else:
            assert (row.auroc, row.average_precision) == (None, None)


@thorough
@given(cases())
def test_scores_of_probabilities_equal_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    ours = multilabel_metrics(*case, [str(index) for index in range(case[0].shape[1])])
    numbers, is_true = case[0].numpy().ravel(), case[1].numpy().ravel() > 0
    assert same(ours.log_loss, sk.log_loss(is_true, numbers, labels=[False, True]))
    expected = sk.brier_score_loss(is_true, numbers, labels=[False, True])
    assert same(ours.brier_score, expected)
    edges = np.linspace(0, 1, 16)
    # On a border, the bin hangs on the last digit of 1 / 5.
    if np.abs(numbers[:, None] - edges[1:-1]).min() > 1e-9:
        share, mean = calibration_curve(is_true, numbers, n_bins=15)
        counts = np.bincount(np.searchsorted(edges[1:-1], numbers))
        expected = counts[counts > 0] / len(numbers) @ np.abs(share - mean)
        assert same(ours.expected_calibration_error, expected)


@relaxed
@given(cases())
def test_means_leave_out_what_is_undefined(case: tuple[Tensor, Tensor]) -> None:
    names = [f"label {index}" for index in range(case[0].shape[1])]
    ours = multilabel_metrics(*case, names)
    for mean, values in (
        (ours.macro_f1, [row.f1 for row in ours.per_class]),
        (ours.auroc, [row.auroc for row in ours.per_class]),
        (ours.mean_average_precision, [row.average_precision for row in ours.per_class]),
    ):
        defined = [value for value in values if value is not None]
        assert mean == (pytest.approx(np.mean(defined)) if defined else None)
    targets, given_ = case[1].numpy() > 0, case[0].numpy() >= 0.5
    if targets.any():
        expected = sk.f1_score(targets.ravel(), given_.ravel(), zero_division=0)
        assert ours.micro_f1 == pytest.approx(expected)
    else:
        assert ours.micro_f1 is None


@relaxed
@given(cases())
def test_to_dict_is_plain_json(case: tuple[Tensor, Tensor]) -> None:
    ours = multilabel_metrics(*case, [str(index) for index in range(case[0].shape[1])])
    plain = ours.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["per_class"][0]["support"] == ours.per_class[0].support


def test_a_label_is_given_from_one_half_on() -> None:
    ours = multilabel_metrics(torch.tensor([[0.5, 0.4999]]), torch.tensor([[1, 0]]), ["a", "b"])
    assert ours.exact_match == 1
    assert ours.absent_classes == ("b",)


def test_no_image_and_nan_are_named() -> None:
    with pytest.raises(DataError, match="no image"):
        multilabel_metrics(torch.empty(0, 2), torch.empty(0, 2), ["a", "b"])
    with pytest.raises(FinetuneError, match="1 of 2 images"):
        multilabel_metrics(
            torch.tensor([[0.5, 0.5], [float("nan"), 0.5]]), torch.ones(2, 2), ["a", "b"]
        )


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        ([[0.5]], [[1, 0]], r"probabilities: got shape \[1, 1\], expected \[N, 2\]"),
        ([[0.5, 0.5]], [[1, 0], [0, 1]], r"expected \[1, 2\]"),
        ([[0.5, 0.5]], [[0.5, 0]], "of 0 and 1"),
        ([[0.5, 1.5]], [[1, 0]], "sigmoid"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    probabilities: list[list[float]], targets: list[list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(torch.tensor(probabilities), torch.tensor(targets), ["a", "b"])
