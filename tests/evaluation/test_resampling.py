import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.evaluation.metrics import Metrics, classification_metrics
from finetune.evaluation.multilabel import MultilabelMetrics, multilabel_metrics
from finetune.evaluation.resampling import (
    Scores,
    Units,
    calibration_noise,
    counted_scores,
    prepare_ranking,
    prepare_rankings,
    prepare_sums,
    ranked_scores,
    scores_of_rankings,
)
from finetune.models.answers import Task

relaxed = settings(deadline=None, max_examples=100)


@st.composite
def cases(draw: st.DrawFn, *, task: Task) -> tuple[Tensor, Tensor, Units]:
    """Images in units of several, with ties, absent classes and labels that every image shows."""
    num_classes, n = draw(st.integers(2, 7)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = torch.from_numpy(rng.normal(size=(n, num_classes)))
    if draw(st.booleans()):
        logits = logits.round()
    units = rng.integers(0, draw(st.integers(1, n)), n)
    units = np.unique(units, return_inverse=True)[1]
    if task == "multilabel":
        targets = torch.from_numpy(
            rng.random((n, num_classes)) < rng.choice([0, 0.4, 1], num_classes)
        ).float()
        return logits.sigmoid(), targets, units
    targets = torch.from_numpy(rng.integers(0, draw(st.integers(1, num_classes)), n))
    return logits.softmax(1), targets, units


def score(case: tuple[Tensor, Tensor, Units], task: Task, weights: np.ndarray) -> Scores:
    probabilities, targets, units = case
    counted = counted_scores(prepare_sums(probabilities, targets, task=task, units=units), weights)
    rankings = prepare_rankings(probabilities, targets, units=units)
    ranked = scores_of_rankings(task, rankings, weights)
    return Scores(counted.overall | ranked.overall, counted.per_class | ranked.per_class)


def assert_equal(ours: Scores, column: int, theirs: Metrics | MultilabelMetrics) -> None:
    for name, values in ours.overall.items():
        expected = getattr(theirs, name)
        value = np.nan if expected is None else expected
        assert values[column] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    for name, rows in ours.per_class.items():
        for row, expected_row in zip(rows, theirs.per_class, strict=True):
            expected = getattr(expected_row, name)
            value = np.nan if expected is None else expected
            assert row[column] == pytest.approx(value, abs=1e-6, nan_ok=True), name


@relaxed
@given(cases(task="multiclass"), st.integers(0, 1000))
def test_scores_equal_the_metrics_of_the_repeated_images(
    case: tuple[Tensor, Tensor, Units], seed: int
) -> None:
    probabilities, targets, units = case
    names = [str(index) for index in range(probabilities.shape[1])]
    drawn = np.random.default_rng(seed).integers(0, 3, units.max() + 1).astype(np.float64)
    drawn[units[0]] = 1
    ours = score(case, "multiclass", np.stack([np.ones_like(drawn), drawn], axis=1))
    assert_equal(ours, 0, classification_metrics(probabilities, targets, names))
    again = np.repeat(np.arange(len(units)), drawn[units].astype(int))
    assert_equal(ours, 1, classification_metrics(probabilities[again], targets[again], names))


@relaxed
@given(cases(task="multilabel"), st.integers(0, 1000))
def test_scores_of_labels_equal_the_metrics_of_the_repeated_images(
    case: tuple[Tensor, Tensor, Units], seed: int
) -> None:
    probabilities, targets, units = case
    names = [str(index) for index in range(probabilities.shape[1])]
    drawn = np.random.default_rng(seed).integers(0, 3, units.max() + 1).astype(np.float64)
    drawn[units[0]] = 1
    ours = score(case, "multilabel", np.stack([np.ones_like(drawn), drawn], axis=1))
    assert_equal(ours, 0, multilabel_metrics(probabilities, targets, names))
    again = np.repeat(np.arange(len(units)), drawn[units].astype(int))
    assert_equal(ours, 1, multilabel_metrics(probabilities[again], targets[again], names))


@relaxed
@given(cases(task="multiclass"), st.integers(0, 1000))
def test_a_calibration_error_moves_by_no_more_than_its_noise(
    case: tuple[Tensor, Tensor, Units], seed: int
) -> None:
    probabilities, targets, units = case
    sums = prepare_sums(probabilities, targets, task="multiclass", units=units)
    weights = np.random.default_rng(seed).integers(0, 3, (units.max() + 1, 5)).astype(np.float64)
    weights[units[0]] = 1
    noise = calibration_noise(sums, weights)
    before = counted_scores(sums, np.ones((len(weights), 1))).overall["expected_calibration_error"]
    after = counted_scores(sums, weights).overall["expected_calibration_error"]
    assert (np.abs(after - before) <= noise + 1e-12).all()
    assert calibration_noise(sums, np.ones((len(weights), 1))) == pytest.approx(0, abs=1e-12)


def test_any_numbers_rank_that_grow_with_the_probability() -> None:
    rng = np.random.default_rng(0)
    numbers, is_true, units = rng.random(50), rng.random(50) < 0.4, np.arange(50)
    weights = rng.integers(0, 3, (50, 4)).astype(np.float64)
    ranked = ranked_scores(prepare_ranking(numbers, is_true, units), weights)
    again = ranked_scores(prepare_ranking(100 * numbers - 7, is_true, units), weights)
    assert np.array_equal(ranked, again)


def test_a_ranking_counts_the_units_of_the_smaller_side() -> None:
    is_true = np.array([True, True, True, False, False])
    ranking = prepare_ranking(np.linspace(0, 1, 5), is_true, np.array([0, 0, 0, 1, 2]))
    assert ranking.fewest_units == 1
    # Steps without an image of the class are one.
    assert ranking.positives.shape == (4, 3)
