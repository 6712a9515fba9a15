"""Prediction sets hold the true class as often as was asked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.conformal import (
    SetRule,
    cross_fitted_coverage,
    describe_sets,
    expected_range,
    fit_sets,
    is_reliable,
)


def sampled(
    images: int, classes: int, sharpness: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A model that says what is true: labels are drawn from its probabilities."""
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(0, sharpness, (images, classes))).softmax(1)
    drawn = (rows.cumsum(1) < torch.from_numpy(rng.random((images, 1)))).sum(1)
    return rows, drawn.clamp(max=classes - 1)


@pytest.mark.parametrize(("classes", "sharpness"), [(2, 1.5), (5, 2.0), (30, 3.0)])
@pytest.mark.parametrize("coverage", [0.9, 0.95, 0.99])
def test_new_images_are_covered_as_asked(classes: int, sharpness: float, coverage: float) -> None:
    """Within 1.5 points with many images, where the likeliest class alone does not do."""
    rows, targets = sampled(6000, classes, sharpness, seed=classes)
    rule = fit_sets(rows[:3000], targets[:3000], coverage=coverage)
    assert rule is not None
    report = describe_sets(rows[3000:], targets[3000:], rule)
    assert not report.is_above_by_accuracy
    assert report.coverage == pytest.approx(coverage, abs=0.015)


def test_sets_of_one_class_cover_more_where_the_model_is_better() -> None:
    rows, targets = sampled(2000, 3, 8.0, seed=0)
    rule = fit_sets(rows, targets, coverage=0.5)
    assert rule is not None
    report = describe_sets(rows, targets, rule)
    assert report.is_above_by_accuracy
    assert report.share_single == 1
    assert report.coverage == pytest.approx(float((rows.argmax(1) == targets).double().mean()))


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(20, 200), st.integers(2, 15), st.floats(0.1, 0.9))
def test_calibration_images_are_covered_and_more_coverage_needs_more(
    seed: int, images: int, classes: int, coverage: float
) -> None:
    rows, targets = sampled(images, classes, 1.0, seed)
    rule = fit_sets(rows, targets, coverage=coverage)
    assert rule is not None
    report = describe_sets(rows, targets, rule)
    assert report.coverage >= coverage
    assert report.mean_size >= 1
    assert sum(report.sizes) == images
    assert len(report.sizes) <= classes
    more = fit_sets(rows, targets, coverage=min(0.94, coverage + 0.1))
    assert more is None or more.limit >= rule.limit


def test_too_few_images_give_no_rule() -> None:
    rows, targets = sampled(18, 2, 1.0, seed=0)
    assert fit_sets(rows, targets, coverage=0.95) is None
    rows, targets = sampled(19, 2, 1.0, seed=0)
    assert fit_sets(rows, targets, coverage=0.95) is not None
    assert fit_sets(rows[:0], targets[:0], coverage=0.5) is None
    with pytest.raises(ValueError, match="coverage"):
        fit_sets(rows, targets, coverage=1)


def test_a_class_without_images_has_no_coverage() -> None:
    rule = SetRule(0.9, 0.5, 0.0, 1, 100)
    report = describe_sets(torch.eye(3)[:2], torch.tensor([0, 1]), rule)
    assert report.class_coverage == (1.0, 1.0, None)


@pytest.mark.parametrize("images", [50, 500])
def test_the_expected_range_is_what_a_simulation_finds(images: int) -> None:
    """Scores are uniform: the coverage of new images is the limit itself."""
    rng = np.random.default_rng(0)
    place = int(np.ceil((images + 1) * 0.9))
    limits = np.sort(rng.random((20_000, images)), axis=1)[:, place - 1]
    low, high = expected_range(images, 0.9)
    assert (low, high) == pytest.approx(tuple(np.quantile(limits, (0.025, 0.975))), abs=0.006)


def test_few_images_are_not_relied_on() -> None:
    assert not is_reliable(153, 0.95)
    assert is_reliable(2000, 0.95)
    assert expected_range(10, 0.95) == (0.0, 1.0)


def test_images_that_the_limit_was_not_chosen_on() -> None:
    rows, targets = sampled(3000, 4, 1.5, seed=5)
    found = cross_fitted_coverage(rows, targets, coverage=0.9)
    assert found == pytest.approx(0.9, abs=0.015)
    assert cross_fitted_coverage(rows[:20], targets[:20], coverage=0.95) is None
    assert cross_fitted_coverage(rows[:9], targets[:9], coverage=0.5, groups=["a"] * 9) is None
