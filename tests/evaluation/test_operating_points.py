"""Thresholds for the positive of two classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.operating_points import choose_operating_points, operating_point_at

rows = st.lists(
    st.tuples(st.integers(0, 20).map(lambda tick: tick / 20), st.booleans()),
    min_size=1,
    max_size=30,
)


def parted(pairs: list[tuple[float, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])


@settings(max_examples=200)
@given(rows, st.floats(0.1, 1), st.floats(0.1, 1))
def test_each_rule_is_the_best_that_holds(
    pairs: list[tuple[float, bool]], min_sensitivity: float, min_specificity: float
) -> None:
    scores, is_positive = parted(pairs)
    points = {
        point.rule: point
        for point in choose_operating_points(
            scores,
            is_positive,
            min_sensitivity=min_sensitivity,
            min_specificity=min_specificity,
        )
    }
    assert points["default"].threshold == 0.5
    if is_positive.all() or not is_positive.any():
        assert set(points) == {"default"}
        return
    tried = [
        operating_point_at(scores, is_positive, threshold, "any")
        for threshold in [1e-6, 0.999999, *(float(s) for s in scores.unique() if 0 < s < 1)]
    ]
    for point in points.values():
        assert point.tp + point.fp + point.fn + point.tn == len(pairs)
        assert 0 < point.threshold < 1
    youden = points["youden"]
    assert youden.sensitivity is not None
    assert youden.specificity is not None
    for other in tried:
        assert other.sensitivity is not None
        assert other.specificity is not None
        assert youden.sensitivity + youden.specificity >= (
            other.sensitivity + other.specificity - 1e-9
        )
    for rule, kept, best, least in (
        ("min_sensitivity", "sensitivity", "specificity", min_sensitivity),
        ("min_specificity", "specificity", "sensitivity", min_specificity),
    ):
        able = [other for other in tried if getattr(other, kept) >= least]
        assert not able or rule in points
        if rule in points:
            assert getattr(points[rule], kept) >= least - 1e-9
            for other in able:
                assert getattr(points[rule], best) >= getattr(other, best) - 1e-9


def test_a_threshold_survives_rounding() -> None:
    scores = torch.tensor([0.2, 0.4, 0.6, 0.8])
    is_positive = torch.tensor([False, True, False, True])
    for point in choose_operating_points(
        scores, is_positive, min_sensitivity=0.95, min_specificity=0.95
    ):
        for noise in (-1e-6, 1e-6):
            assert (
                operating_point_at(scores + noise, is_positive, point.threshold, point.rule)
                == point
            )


def test_known_numbers() -> None:
    scores = torch.tensor([0.1, 0.3, 0.35, 0.8])
    is_positive = torch.tensor([False, False, True, True])
    points = choose_operating_points(scores, is_positive, min_sensitivity=1, min_specificity=1)
    default, youden, sensitive, specific = points
    assert (default.sensitivity, default.specificity) == (0.5, 1.0)
    assert default.negative_predictive_value == pytest.approx(2 / 3)
    for point in (youden, sensitive, specific):
        assert point.threshold == pytest.approx(0.325)
        assert (point.sensitivity, point.specificity) == (1.0, 1.0)


def test_what_is_undefined_is_none() -> None:
    point = operating_point_at(torch.tensor([0.1]), torch.tensor([False]), 0.5, "default")
    assert (point.sensitivity, point.positive_predictive_value) == (None, None)
    assert (point.specificity, point.negative_predictive_value) == (1.0, 1.0)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="expected"):
        operating_point_at(torch.zeros(2), torch.zeros(3, dtype=torch.bool), 0.5, "default")
