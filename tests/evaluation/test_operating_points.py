import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from torch import Tensor

from finetune.evaluation.operating_points import (
    OperatingPoint,
    choose_operating_points,
    operating_point_at,
)
from finetune.prediction.decision import Decision, read_decided

Case = tuple[Tensor, Tensor]

SHARES = [0.0, 0.3, 0.5, 0.8, 0.95, 1.0]

relaxed = settings(deadline=None, max_examples=100)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Scores with ties, at 0 and 1, and one float32 apart."""
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    match draw(st.sampled_from(["few", "many", "close"])):
        case "few":
            scores = rng.integers(0, 11, n).astype(np.float32) / np.float32(10)
        case "many":
            scores = rng.random(n).astype(np.float32)
        case _:
            start = np.float32(rng.choice([0.0, 0.3, 0.5, 1 - 4 * 2**-24]))
            scores = start + np.float32(2**-24) * rng.integers(0, 4, n).astype(np.float32)
    is_positive = rng.random(n) < 0.5
    is_positive[:2] = [True, False]
    return torch.from_numpy(np.clip(scores, 0, 1)), torch.from_numpy(is_positive)


def choose(
    case: Case, sensitivity: float = 0.9, specificity: float = 0.9
) -> dict[str, OperatingPoint]:
    points = choose_operating_points(
        *case, min_sensitivity=sensitivity, min_specificity=specificity
    )
    return {point.rule: point for point in points}


def every_threshold(case: Case) -> list[OperatingPoint]:
    """One point per way to divide the scores that a threshold in (0, 1) can make."""
    levels = [value for value in case[0].unique().tolist() if 0 < value < 1]
    above = [(case[0].max().item() + 1) / 2]
    if case[0].max() < 1:
        levels += [value for value in above if np.float32(value) < 1]
    elif (case[0] < 1).any():
        below = case[0][case[0] < 1].max().item()
        highest = float(np.nextafter(np.float32(1), np.float32(0)))
        levels += [highest] if highest > below else []
    return [operating_point_at(*case, level, "any") for level in levels]


@relaxed
@given(cases(), st.floats(0.01, 0.99))
def test_counts_equal_scikit_learn(case: Case, threshold: float) -> None:
    point = operating_point_at(*case, threshold, "any")
    called = case[0].numpy() >= np.float32(threshold)
    tn, fp, fn, tp = confusion_matrix(case[1].numpy(), called, labels=[False, True]).ravel()
    assert (point.tp, point.fp, point.fn, point.tn) == (tp, fp, fn, tn)
    assert point.sensitivity == tp / (tp + fn)
    assert point.specificity == tn / (tn + fp)
    assert point.positive_predictive_value == (tp / (tp + fp) if tp + fp else None)
    assert point.negative_predictive_value == (tn / (tn + fn) if tn + fn else None)


@relaxed
@given(cases(), st.sampled_from(SHARES), st.sampled_from(SHARES))
def test_no_other_threshold_is_better(case: Case, sensitivity: float, specificity: float) -> None:
    points = choose(case, sensitivity, specificity)
    others = [*every_threshold(case), points["default"]]
    assert points["default"].threshold == 0.5

    def youden(point: OperatingPoint) -> float:
        return (point.sensitivity or 0) + (point.specificity or 0)

    assert youden(points["youden"]) == pytest.approx(max(map(youden, others)))
    keep = [point for point in others if (point.sensitivity or 0) >= sensitivity]
    assert ("min_sensitivity" in points) == bool(keep)
    if keep:
        assert (points["min_sensitivity"].sensitivity or 0) >= sensitivity
        best = max(point.specificity or 0 for point in keep)
        assert points["min_sensitivity"].specificity == best
    keep = [point for point in others if (point.specificity or 0) >= specificity]
    assert ("min_specificity" in points) == bool(keep)
    if keep:
        assert (points["min_specificity"].specificity or 0) >= specificity
        best = max(point.sensitivity or 0 for point in keep)
        assert points["min_specificity"].sensitivity == best


@relaxed
@given(cases())
def test_a_threshold_gives_the_same_after_it_is_written_and_in_predict(case: Case) -> None:
    scores, is_positive = case
    for point in choose(case).values():
        assert 0 < point.threshold < 1
        threshold = json.loads(json.dumps(asdict(point)))["threshold"]
        assert operating_point_at(*case, threshold, point.rule) == point
        decision = Decision(("normal", "ill"), "multiclass", threshold=threshold)
        answers = read_decided(torch.stack([1 - scores, scores], dim=1), decision)
        is_called = torch.tensor([answer.labels == ("ill",) for answer in answers])
        assert int((is_called & is_positive).sum()) == point.tp
        assert int((is_called & ~is_positive).sum()) == point.fp


def test_a_threshold_is_short_and_away_from_the_scores() -> None:
    scores = torch.tensor([0.1, 0.2, 0.31, 0.7123, 0.9])
    points = choose((scores, torch.tensor([False, False, True, False, True])), 1.0, 1.0)
    assert points["min_sensitivity"].threshold == 0.26
    assert points["min_specificity"].threshold == 0.81
    assert points["youden"].threshold in (0.26, 0.81)


def test_of_equal_sums_youden_takes_the_threshold_nearest_to_one_half() -> None:
    scores = torch.tensor([0.1, 0.2, 0.5, 0.6])
    is_positive = torch.tensor([False, True, False, True])
    assert choose((scores, is_positive))["youden"].threshold == 0.55
    assert choose((1 - scores, ~is_positive))["youden"].threshold == 0.45


def test_nineteen_of_twenty_keep_a_sensitivity_of_95_percent() -> None:
    scores = torch.linspace(0.1, 0.9, 40)
    is_positive = torch.arange(40) % 2 == 0
    assert choose((scores, is_positive), 0.95)["min_sensitivity"].tp == 19


def test_what_cannot_be_held_is_left_out() -> None:
    scores = torch.tensor([0.0, 0.0, 1.0, 1.0])
    # A score of 0 is called positive by no threshold in (0, 1), and one of 1 by all of them.
    points = choose((scores, torch.tensor([True, False, True, False])), 0.9, 0.9)
    assert set(points) == {"default", "youden"}


@pytest.mark.parametrize("truth", [True, False])
def test_with_one_class_there_is_no_choice(truth: bool) -> None:
    (point,) = choose((torch.tensor([0.2, 0.8]), torch.tensor([truth, truth]))).values()
    assert point.rule == "default"
    assert (point.sensitivity is None, point.specificity is None) == (not truth, truth)
    assert point.positive_predictive_value == float(truth)


@pytest.mark.parametrize("shapes", [((0,), (0,)), ((2,), (3,)), ((2, 2), (2, 2))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[N\] of both"):
        operating_point_at(torch.zeros(shapes[0]), torch.zeros(shapes[1]).bool(), 0.5, "default")
