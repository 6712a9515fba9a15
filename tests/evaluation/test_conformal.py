"""Prediction sets hold the true class as often as was asked."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation import conformal
from finetune.evaluation.conformal import (
    FREE_RANKS,
    PENALTY,
    SetRule,
    cross_fitted_coverage,
    describe_sets,
    expected_range,
    fit_sets,
    is_reliable,
)
from finetune.models.sets import set_scores


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


def test_limits_that_are_chosen_anew_cover_as_often_as_was_promised() -> None:
    """With 60 images, no one limit is to be relied on; over many, the mean and the range hold."""
    rows, targets = sampled(60_000, 5, 1.5, seed=7)
    fresh = set_scores(rows[48_000:], penalty=0, free_ranks=1).gather(1, targets[48_000:, None])
    coverages = []
    for first in range(0, 48_000, 60):
        rule = fit_sets(rows[first : first + 60], targets[first : first + 60], coverage=0.9)
        assert rule is not None
        coverages.append(float((fresh <= rule.limit).double().mean()))
    assert 0.9 - 0.005 <= np.mean(coverages) <= 0.9 + 1 / 61 + 0.005
    low, high = expected_range(60, 0.9)
    assert np.mean([low <= one <= high for one in coverages]) == pytest.approx(0.95, abs=0.03)


def test_classes_in_a_long_tail_are_penalised_but_coverage_holds() -> None:
    rows, targets = sampled(4000, 200, 2.0, seed=2)
    rule = fit_sets(rows[:2000], targets[:2000], coverage=0.9)
    assert rule is not None
    assert (rule.penalty, rule.free_ranks) == (PENALTY, FREE_RANKS)
    report = describe_sets(rows[2000:], targets[2000:], rule)
    plain = set_scores(rows, penalty=0, free_ranks=1)
    of_true = plain[:2000].gather(1, targets[:2000, None]).squeeze(1)
    limit = float(of_true.kthvalue(math.ceil(2001 * 0.9)).values)
    without = describe_sets(rows[2000:], targets[2000:], SetRule(0.9, limit, 0.0, 1, 2000))
    assert report.coverage == pytest.approx(0.9, abs=0.02)
    assert len(report.sizes) < len(without.sizes)
    two = fit_sets(*sampled(100, 2, 1.0, seed=0), coverage=0.9)
    assert two is not None
    assert two.penalty == 0


def test_rounding_in_another_runtime_changes_no_set_of_the_calibration_images() -> None:
    rows, targets = sampled(500, 4, 1.5, seed=3)
    rule = fit_sets(rows, targets, coverage=0.9)
    assert rule is not None
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-2e-6, 2e-6, rows.shape))
    assert describe_sets(rows + noise, targets, rule) == describe_sets(rows, targets, rule)


def test_images_in_parts_are_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, targets = sampled(300, 12, 1.5, seed=4)
    rule = fit_sets(rows, targets, coverage=0.8)
    assert rule is not None
    whole = describe_sets(rows, targets, rule)
    monkeypatch.setattr(conformal, "_CHUNK", 12 * 7)
    assert fit_sets(rows, targets, coverage=0.8) == rule
    assert describe_sets(rows, targets, rule) == whole


def test_few_images_are_not_relied_on() -> None:
    assert not is_reliable(153, 0.95)
    assert not is_reliable(790, 0.95)
    assert is_reliable(910, 0.95)
    assert not is_reliable(910, 0.9)
    assert is_reliable(1650, 0.9)
    assert expected_range(10, 0.95) == (0.0, 1.0)


def test_images_that_the_limit_was_not_chosen_on() -> None:
    rows, targets = sampled(3000, 4, 1.5, seed=5)
    found = cross_fitted_coverage(rows, targets, coverage=0.9)
    assert found == pytest.approx(0.9, abs=0.015)
    assert found == cross_fitted_coverage(rows, targets, coverage=0.9)
    # Whole groups that are unlike the others are not covered as was promised.
    unlike = rows.clone()
    unlike[:600] = unlike[:600].flip(1)
    groups = [str(place // 600) for place in range(3000)]
    assert (cross_fitted_coverage(unlike, targets, coverage=0.9, groups=groups) or 1) < found - 0.01
    assert cross_fitted_coverage(rows[:20], targets[:20], coverage=0.95) is None
    assert cross_fitted_coverage(rows[:9], targets[:9], coverage=0.5, groups=["a"] * 9) is None
