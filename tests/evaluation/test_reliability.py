"""Whether probabilities mean what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from finetune.evaluation.reliability import expected_calibration_error, reliability_bins
from finetune.models.answers import decide


def draw(seed: int, images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    probabilities = torch.from_numpy(rng.dirichlet(np.ones(classes), images))
    return probabilities, torch.from_numpy(rng.integers(0, classes, images))


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 5), st.integers(1, 20))
def test_it_is_torchmetrics_error(seed: int, images: int, classes: int, bins: int) -> None:
    probabilities, targets = draw(seed, images, classes)
    ours = expected_calibration_error(probabilities, targets, "multiclass", bins)
    theirs = multiclass_calibration_error(probabilities, targets, classes, n_bins=bins, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-5)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 4))
def test_several_labels_are_so_many_answers(seed: int, images: int, labels: int) -> None:
    """torchmetrics judges the probability of label 1 of each pair, as we do."""
    rng = np.random.default_rng(seed)
    probabilities = torch.from_numpy(rng.random((images, labels)))
    targets = torch.from_numpy(rng.integers(0, 2, (images, labels)))
    ours = expected_calibration_error(probabilities, targets, "multilabel")
    theirs = _by_hand(probabilities.flatten().numpy(), targets.flatten().numpy(), 15)
    assert ours == pytest.approx(theirs, abs=1e-9)
    again = binary_calibration_error(
        probabilities.flatten(), targets.flatten(), n_bins=15, norm="l1"
    )
    assert ours == pytest.approx(float(again), abs=1e-4)


def _by_hand(confidence: np.ndarray, is_right: np.ndarray, bins: int) -> float:
    total = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = (confidence > low) & (confidence <= high)
        inside |= (place == 0) & (confidence == 0)
        if inside.any():
            total += abs((confidence[inside] - is_right[inside]).sum())
    return total / len(confidence)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 5))
def test_bins_hold_every_answer_once(seed: int, images: int, classes: int) -> None:
    probabilities, targets = draw(seed, images, classes)
    bins = reliability_bins(probabilities, targets, "multiclass")
    assert sum(row.count for row in bins) == images
    accuracy = float((probabilities.argmax(1) == targets).double().mean())
    assert sum(row.count * row.accuracy for row in bins) / images == pytest.approx(accuracy)
    assert [row.confidence for row in bins] == sorted(row.confidence for row in bins)


def test_certain_and_right_is_no_error_and_certain_and_wrong_is_all() -> None:
    eye = torch.eye(3)
    assert expected_calibration_error(eye, torch.arange(3), "multiclass") == 0
    assert expected_calibration_error(eye, torch.tensor([1, 2, 0]), "multiclass") == 1
    (row,) = reliability_bins(eye, torch.arange(3), "multiclass")
    assert (row.confidence, row.accuracy, row.count) == (1, 1, 3)


def test_no_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="bins"):
        reliability_bins(torch.eye(2), torch.arange(2), "multiclass", bins=0)
    with pytest.raises(ValueError, match="no image"):
        expected_calibration_error(torch.zeros(0, 2), torch.zeros(0).long(), "multiclass")


def test_a_border_belongs_to_the_bin_that_ends_there() -> None:
    """As in the code of Guo et al.; torchmetrics would part the certain answers from the others."""
    rows = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0], [0.9, 0.1]], dtype=torch.float64)
    bins = reliability_bins(rows, torch.zeros(4).long(), "multiclass", bins=4)
    assert [(row.confidence, row.count) for row in bins] == [(0.5, 1), (0.75, 1), (0.95, 2)]


def test_of_equal_probabilities_the_answer_is_that_of_the_model() -> None:
    rows = torch.full((2, 3), 1 / 3)
    targets = torch.tensor([0, 1])
    (row,) = reliability_bins(rows, targets, "multiclass")
    assert row.accuracy == float((decide(rows, "multiclass")[[0, 1], targets]).double().mean())
