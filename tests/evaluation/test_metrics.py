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
from finetune.evaluation.metrics import Metrics, classification_metrics

Case = tuple[Tensor, Tensor]

# A time limit per example fails on a busy machine.
relaxed = settings(deadline=None, max_examples=50)
thorough = settings(deadline=None, max_examples=200)


@st.composite
def cases(draw: st.DrawFn, max_classes: int = 8) -> Case:
    """Probabilities and labels, often with classes that have no image or no prediction."""
    num_classes = draw(st.integers(2, max_classes))
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = draw(
        st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=num_classes, unique=True)
    )
    # Few distinct logits make ties, which must be ranked as scikit-learn ranks them.
    logits = (
        rng.integers(-3, 4, (n, num_classes))
        if draw(st.booleans())
        else rng.normal(size=(n, num_classes))
    )
    probabilities = torch.from_numpy(logits.astype(np.float64)).softmax(1)
    return probabilities, torch.from_numpy(rng.choice(present, n))


def names(probabilities: Tensor) -> list[str]:
    return [f"class {index}" for index in range(probabilities.shape[1])]


def measure(case: Case) -> Metrics:
    return classification_metrics(*case, names(case[0]))


def same(ours: float | None, theirs: float) -> bool:
    return np.isnan(theirs) if ours is None else bool(np.isclose(ours, theirs, atol=1e-6))


@thorough
@given(cases())
def test_counts_and_scores_equal_scikit_learn(case: Case) -> None:
    probabilities, labels = case[0].numpy(), case[1].numpy()
    predicted, present = probabilities.argmax(1), np.unique(labels)
    ours = measure(case)
    assert ours.n == len(labels)
    assert same(ours.accuracy, sk.accuracy_score(labels, predicted))
    precision, recall, _, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=present, average="macro", zero_division=np.nan
    )
    assert same(ours.balanced_accuracy, recall)
    assert same(ours.macro_recall, recall)
    assert same(ours.macro_precision, precision)
    expected = sk.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert same(ours.macro_f1, expected)
    every = np.arange(probabilities.shape[1])
    expected = sk.confusion_matrix(labels, predicted, labels=every)
    assert np.array_equal(np.array(ours.confusion_matrix), expected)
    if len(every) == 2:
        recalls = sk.recall_score(
            labels, predicted, labels=every, average=None, zero_division=np.nan
        )
        assert same(ours.specificity, recalls[0])
        assert same(ours.sensitivity, recalls[1])
    else:
        assert (ours.sensitivity, ours.specificity) == (None, None)


@thorough
@given(cases())
def test_scores_of_probabilities_equal_scikit_learn(case: Case) -> None:
    probabilities, labels = case[0].numpy(), case[1].numpy()
    ours, every = measure(case), np.arange(probabilities.shape[1])
    assert same(ours.log_loss, sk.log_loss(labels, probabilities, labels=every))
    expected = sk.brier_score_loss(labels, probabilities, labels=every, scale_by_half=False)
    assert same(ours.brier_score, expected)
    confidence, edges = probabilities.max(1), np.linspace(0, 1, 16)
    # On a border, the bin hangs on the last digit of 1 / 3.
    if np.abs(confidence[:, None] - edges[1:-1]).min() > 1e-9:
        is_right = probabilities.argmax(1) == labels
        accuracy, mean = calibration_curve(is_right, confidence, n_bins=15)
        counts = np.bincount(np.searchsorted(edges[1:-1], confidence))
        expected = counts[counts > 0] / len(labels) @ np.abs(accuracy - mean)
        assert same(ours.expected_calibration_error, expected)


@thorough
@given(cases())
def test_agreement_equals_scikit_learn_where_it_is_defined(case: Case) -> None:
    labels, predicted = case[1].numpy(), case[0].numpy().argmax(1)
    ours = measure(case)
    if len({*labels, *predicted}) == 1:
        assert ours.cohen_kappa is None
    else:
        assert ours.cohen_kappa is not None
        assert same(ours.cohen_kappa, sk.cohen_kappa_score(labels, predicted))
    if len({*labels}) == 1 or len({*predicted}) == 1:
        assert ours.matthews_correlation is None
    else:
        assert ours.matthews_correlation is not None
        assert same(ours.matthews_correlation, sk.matthews_corrcoef(labels, predicted))


@thorough
@given(cases())
def test_classes_equal_scikit_learn(case: Case) -> None:
    probabilities, labels = case[0].numpy(), case[1].numpy()
    predicted, ours = probabilities.argmax(1), measure(case)
    every = np.arange(probabilities.shape[1])
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    for index, row in enumerate(ours.per_class):
        is_true = labels == index
        assert row.support == support[index]
        assert same(row.precision, precision[index])
        assert same(row.recall, recall[index])
        # scikit-learn has an F1 where only predictions are; without true images we have none.
        assert same(row.f1, f1[index] if is_true.any() else np.nan)
        if is_true.any() and not is_true.all():
            scores = probabilities[:, index]
            assert same(row.auroc, sk.roc_auc_score(is_true, scores))
            assert same(row.average_precision, sk.average_precision_score(is_true, scores))
        else:
            assert (row.auroc, row.average_precision) == (None, None)


@relaxed
@given(cases())
def test_auroc_is_macro_over_what_is_defined(case: Case) -> None:
    ours = measure(case)
    defined = [row.auroc for row in ours.per_class if row.auroc is not None]
    if len(ours.per_class) == 2:
        assert ours.auroc == ours.per_class[1].auroc
    elif not defined:
        assert ours.auroc is None
    else:
        assert ours.auroc == pytest.approx(np.mean(defined))


@relaxed
@given(cases())
def test_mean_average_precision_is_macro_over_what_is_defined(case: Case) -> None:
    ours = measure(case)
    rows = ours.per_class
    defined = [row.average_precision for row in rows if row.average_precision is not None]
    if defined:
        assert ours.mean_average_precision == pytest.approx(np.mean(defined))
    else:
        assert ours.mean_average_precision is None


@thorough
@given(cases(max_classes=9))
def test_top5_counts_only_with_more_than_five_classes(case: Case) -> None:
    probabilities, labels = case
    ours = measure(case)
    if probabilities.shape[1] <= 5:
        assert ours.top5_accuracy is None
        return
    # scikit-learn ranks equal probabilities in the other order of classes.
    mirrored = sk.top_k_accuracy_score(
        probabilities.shape[1] - 1 - labels.numpy(),
        probabilities.flip(1).numpy(),
        k=5,
        labels=np.arange(probabilities.shape[1]),
    )
    assert same(ours.top5_accuracy, mirrored)


@relaxed
@given(cases())
def test_to_dict_is_plain_json(case: Case) -> None:
    ours = measure(case)
    plain = ours.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["macro_f1"] == ours.macro_f1
    assert plain["confusion_matrix"] == [list(row) for row in ours.confusion_matrix]


def test_a_perfect_model_is_perfect_although_a_class_is_absent() -> None:
    labels = torch.tensor([0, 0, 2, 2])
    ours = classification_metrics(torch.eye(3)[labels], labels, ["ant", "bee", "wasp"])
    assert ours.absent_classes == ("bee",)
    assert (ours.macro_f1, ours.balanced_accuracy, ours.auroc) == (1, 1, 1)
    assert ours.per_class[1].f1 is None
    assert ours.log_loss == 0


def test_a_class_never_predicted_has_no_precision_and_an_f1_of_zero() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    ours = classification_metrics(torch.tensor([[0.9, 0.1]] * 4), labels, ["well", "ill"])
    assert ours.never_predicted_classes == ("ill",)
    assert ours.per_class[1].precision is None
    assert ours.per_class[1].f1 == 0
    assert ours.macro_precision == 0.75
    assert ours.macro_f1 == pytest.approx(0.5 * 6 / 7)


def test_sensitivity_is_of_the_second_class() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0])
    ours = classification_metrics(torch.eye(2)[predicted], labels, ["normal", "pneumonia"])
    assert ours.positive_class == "pneumonia"
    assert ours.sensitivity == 0.5
    assert ours.specificity == 0.75


def test_three_classes_have_no_sensitivity() -> None:
    ours = classification_metrics(torch.eye(3), torch.arange(3), ["a", "b", "c"])
    assert (ours.positive_class, ours.sensitivity, ours.specificity) == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_of_the_softmax_does_not_matter(dtype: torch.dtype) -> None:
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 5
    labels = logits.argmax(1)
    ours = classification_metrics(
        logits.to(dtype).softmax(1), labels, [str(index) for index in range(50)]
    )
    assert ours.accuracy > 0.97
    assert ours.auroc is not None
    assert ours.auroc > 0.99


def test_a_certain_mistake_costs_36_nats() -> None:
    ours = classification_metrics(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), ["a", "b"])
    assert ours.log_loss == pytest.approx(36.04, abs=0.01)


def test_a_brier_score_is_two_where_everything_is_certain_and_wrong() -> None:
    ours = classification_metrics(torch.eye(3), torch.tensor([1, 2, 0]), ["a", "b", "c"])
    assert ours.brier_score == 2
    assert ours.expected_calibration_error == 1


def test_one_answer_for_everything_agrees_as_chance_does_and_correlates_with_nothing() -> None:
    ours = classification_metrics(
        torch.tensor([[0.9, 0.1]] * 4), torch.tensor([0, 0, 0, 1]), ["well", "ill"]
    )
    assert (ours.cohen_kappa, ours.matthews_correlation) == (0, None)


def test_no_image_is_the_users_mistake() -> None:
    with pytest.raises(DataError, match="no image"):
        classification_metrics(torch.empty(0, 2), torch.empty(0, dtype=torch.int64), ["a", "b"])


def test_a_model_that_answers_nan_is_named() -> None:
    broken = torch.tensor([[0.5, 0.5], [float("nan"), 0.5]])
    with pytest.raises(FinetuneError, match="1 of 2 images"):
        classification_metrics(broken, torch.tensor([0, 1]), ["a", "b"])


@pytest.mark.parametrize(
    ("probabilities", "labels", "class_names", "message"),
    [
        ([[0.5, 0.5]], [0], ["a"], "at least two"),
        ([[0.5, 0.5]], [0], ["a", "b", "c"], r"expected \[N, 3\]"),
        ([[0.5, 0.5]], [0, 1], ["a", "b"], r"expected \[1\]"),
        ([[0.5, 0.5]], [0.0], ["a", "b"], "int64"),
        ([[0.5, 0.5]], [2], ["a", "b"], "expected 0 to 1"),
        ([[0.5, 0.5]], [-1], ["a", "b"], "expected 0 to 1"),
        ([[2.5, -1.5]], [0], ["a", "b"], "softmax"),
        ([[3.0, 0.5]], [0], ["a", "b"], "softmax"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    probabilities: list[list[float]], labels: list[float], class_names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(torch.tensor(probabilities), torch.tensor(labels), class_names)
