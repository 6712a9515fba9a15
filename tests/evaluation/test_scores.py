"""Scores per class beside scikit-learn's, and what is undefined."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from finetune.evaluation.scores import (
    Counts,
    class_aurocs,
    class_average_precisions,
    class_scores,
    count,
    describe_classes,
    macro_specificity,
    number,
)

Case = tuple[Tensor, Tensor]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Probabilities with ties, and classes that no image, some, or every image shows."""
    num_classes, n = draw(st.integers(1, 5)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = draw(
        st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=num_classes, max_size=num_classes)
    )
    probabilities = torch.from_numpy(rng.integers(0, 11, (n, num_classes)) / 10)
    return probabilities, torch.from_numpy(rng.random((n, num_classes)) < shares)


def same(ours: float | None, theirs: float) -> bool:
    return ours is not None and math.isclose(ours, theirs, abs_tol=1e-6)


@settings(max_examples=60)
@given(cases())
def test_classes_are_described_as_by_scikit_learn_and_by_none_where_undefined(case: Case) -> None:
    probabilities, is_true = case
    rows = describe_classes(
        [f"class {index}" for index in range(probabilities.shape[1])],
        count(probabilities >= 0.5, is_true),
        class_aurocs(probabilities, is_true),
        class_average_precisions(probabilities, is_true),
    )
    for index, row in enumerate(rows):
        column, true = probabilities[:, index].numpy(), is_true[:, index].numpy()
        said = column >= 0.5
        assert row.name == f"class {index}"
        assert (row.support, row.predicted) == (true.sum(), said.sum())
        assert (row.precision is None) == (not said.any())
        assert (row.recall is None) == (row.f1 is None) == (not true.any())
        assert (row.auroc is None) == (true.all() or not true.any())
        assert (row.average_precision is None) == (row.auroc is None)
        if said.any():
            assert same(row.precision, sk.precision_score(true, said, zero_division=0))
        if true.any():
            assert same(row.recall, sk.recall_score(true, said))
            assert same(row.f1, sk.f1_score(true, said, zero_division=0))
        if row.auroc is not None:
            assert same(row.auroc, sk.roc_auc_score(true, column))
            assert same(row.average_precision, sk.average_precision_score(true, column))


@settings(max_examples=60)
@given(cases())
def test_specificity_is_the_recall_of_what_is_not_the_class(case: Case) -> None:
    probabilities, is_true = case
    counts = count(probabilities >= 0.5, is_true)
    values = class_scores(counts).specificity
    defined = []
    for index, value in enumerate(values.tolist()):
        true, said = is_true[:, index].numpy(), probabilities[:, index].numpy() >= 0.5
        if true.all():
            assert math.isnan(value)
        else:
            assert same(value, sk.recall_score(~true, ~said, zero_division=0))
            defined += [value] if true.any() else []
    mean = macro_specificity(counts).item()
    assert same(mean, float(np.mean(defined))) if defined else math.isnan(mean)


@given(cases())
def test_each_image_is_counted_once(case: Case) -> None:
    probabilities, is_true = case
    counts = count(probabilities >= 0.5, is_true)
    assert sum(counts).tolist() == [len(is_true)] * is_true.shape[1]
    assert (counts.tp + counts.fn).tolist() == is_true.sum(0).tolist()


def test_what_is_undefined() -> None:
    """Never true; true and never predicted; always true; predicted and never true."""
    counts = Counts(*torch.tensor([[0, 0, 3, 0], [0, 0, 0, 2], [0, 2, 1, 0], [4, 2, 0, 2]]))
    scores = class_scores(counts)
    nan = math.nan
    for ours, expected in (
        (scores.precision, [nan, nan, 1, 0]),
        (scores.recall, [nan, 0, 0.75, nan]),
        (scores.specificity, [1, 1, nan, 0.5]),
        (scores.f1, [nan, 0, 6 / 7, nan]),
    ):
        assert ours.tolist() == pytest.approx(expected, nan_ok=True)
    assert macro_specificity(counts) == 1


def test_a_probability_above_one_is_no_logit() -> None:
    """As logits, the two smallest would become 0.5 both."""
    probabilities = torch.tensor([[1.004], [2e-9], [1e-9]])
    is_true = torch.tensor([[True], [True], [False]])
    assert class_aurocs(probabilities, is_true).tolist() == [1]
    assert class_average_precisions(probabilities, is_true).tolist() == [1]


@pytest.mark.parametrize(
    ("value", "plain"), [(0.5, 0.5), (0.0, 0.0), (math.nan, None), (math.inf, None)]
)
def test_a_report_has_none_for_what_is_undefined(value: float, plain: float | None) -> None:
    assert number(torch.tensor(value)) == plain
