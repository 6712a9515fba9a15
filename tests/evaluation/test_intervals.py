import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import bootstrap, norm
from torch import Tensor

from finetune.evaluation import bootstrap as drawing
from finetune.evaluation.intervals import (
    PER_CLASS,
    Interval,
    Intervals,
    bootstrap_intervals,
    score_names,
)
from finetune.evaluation.metrics import classification_metrics, log_losses
from finetune.evaluation.multilabel import multilabel_metrics
from finetune.models.answers import Task

relaxed = settings(deadline=None, max_examples=100)


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def make(seed: int, n: int, num_classes: int = 2, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Answers that are as sure as they may be."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, num_classes, n))
    numbers = torch.from_numpy(rng.normal(size=(n, num_classes)))
    numbers[torch.arange(n), labels] += strength
    return (strength * numbers).softmax(1), labels


def intervals(case: tuple[Tensor, Tensor], **options: object) -> Intervals:
    options = {"task": "multiclass", "resamples": 200} | options
    return bootstrap_intervals(*case, names(case[0].shape[1]), **options)  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Task, Tensor, Tensor, list[str | None]]:
    n, num_classes = draw(st.integers(1, 30)), draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    probabilities, targets = make(rng.integers(1000), n, num_classes, draw(st.sampled_from([1, 9])))
    groups = [None if rng.random() < 0.5 else str(rng.integers(n)) for _ in range(n)]
    if draw(st.booleans()):
        shares = rng.choice([0, 0.4, 1], num_classes)
        marks = torch.from_numpy(rng.random((n, num_classes)) < shares).float()
        return "multilabel", probabilities, marks, groups
    return "multiclass", probabilities, targets, groups


@relaxed
@given(cases())
def test_every_interval_holds_what_was_measured_and_has_a_width(
    case: tuple[Task, Tensor, Tensor, list[str | None]],
) -> None:
    task, probabilities, targets, groups = case
    ours = intervals((probabilities, targets), task=task, groups=groups, resamples=50)
    measure = multilabel_metrics if task == "multilabel" else classification_metrics
    metrics = measure(probabilities, targets, names(probabilities.shape[1]))
    assert set(ours.overall) == set(score_names(task))
    assert ours.units == len({*groups} - {None}) + groups.count(None)
    pairs = [(getattr(metrics, name), interval) for name, interval in ours.overall.items()]
    for row, found in zip(metrics.per_class, ours.per_class, strict=True):
        assert tuple(found) == PER_CLASS
        pairs += [(getattr(row, name), interval) for name, interval in found.items()]
    for value, interval in pairs:
        if interval is not None:
            assert interval.low - 1e-6 <= value <= interval.high + 1e-6
            assert interval.low < interval.high
            assert interval.high <= 1 or interval.method == "bootstrap"
    assert json.loads(json.dumps(ours.to_dict(), allow_nan=False)) == ours.to_dict()


def test_names_are_the_scores_of_the_metrics() -> None:
    assert score_names("multiclass") == (
        "accuracy", "top5_accuracy", "balanced_accuracy", "macro_precision", "macro_recall",
        "macro_f1", "auroc", "mean_average_precision", "log_loss", "brier_score",
        "expected_calibration_error", "cohen_kappa", "matthews_correlation", "sensitivity",
        "specificity",
    )  # fmt: skip
    assert score_names("multilabel") == (
        "exact_match", "hamming_accuracy", "macro_precision", "macro_recall", "macro_f1",
        "micro_f1", "mean_average_precision", "auroc", "log_loss", "brier_score",
        "expected_calibration_error",
    )  # fmt: skip


def test_many_images_leave_no_score_without_an_interval() -> None:
    ours = intervals(make(0, 500, 6, 1.5))
    missing = {name for name, interval in ours.overall.items() if interval is None}
    assert missing == {"sensitivity", "specificity"}
    assert all(interval is not None for row in ours.per_class for interval in row.values())
    ours = intervals(make(0, 500))
    assert {name for name, found in ours.overall.items() if found is None} == {"top5_accuracy"}
    probabilities = make(1, 500, 3)[0]
    marks = (torch.rand((500, 3), generator=torch.Generator().manual_seed(0)) < 0.5).float()
    ours = intervals((probabilities, marks), task="multilabel")
    assert None not in ours.overall.values()


def test_percentiles_equal_scipy() -> None:
    case = make(0, 300)
    ours = intervals(case, resamples=4000).overall["log_loss"]
    losses = log_losses(*case).numpy()
    theirs = bootstrap(
        (losses,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours is not None
    error = 0.05 * (theirs.high - theirs.low)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=error)


@pytest.mark.parametrize("copies", [2, 5])
def test_images_of_one_group_are_drawn_together(copies: int) -> None:
    probabilities, labels = make(0, 60)
    groups = [str(index) for index in range(60)] * copies
    once = intervals((probabilities, labels), resamples=1000)
    many = probabilities.repeat(copies, 1), labels.repeat(copies)
    repeated = intervals(many, groups=groups, resamples=1000)
    assert (once.units, repeated.units) == (60, 60)
    for name, interval in once.overall.items():
        other = repeated.overall[name]
        if interval is None or other is None:
            assert interval == other
        else:
            assert (other.low, other.high) == pytest.approx((interval.low, interval.high))
    alone = intervals(many, resamples=1000)
    assert width(alone.overall["log_loss"]) < 0.85 * width(once.overall["log_loss"])


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


def test_draws_hang_on_the_seed_alone() -> None:
    case = make(0, 80)
    assert intervals(case, seed=3) == intervals(case, seed=3)
    assert (
        intervals(case, seed=3).overall["log_loss"] != intervals(case, seed=4).overall["log_loss"]
    )


def test_a_higher_level_is_wider() -> None:
    case = make(0, 80)
    for name in ("log_loss", "auroc", "accuracy", "expected_calibration_error"):
        narrow, wide = (intervals(case, level=level).overall[name] for level in (0.5, 0.95))
        assert width(narrow) < width(wide)


def test_where_all_is_right_the_intervals_are_exact() -> None:
    labels = torch.arange(40) % 2
    ours = intervals((torch.eye(2)[labels], labels))
    found = {name: interval for name, interval in ours.overall.items() if interval is not None}
    assert {interval.method for interval in found.values()} == {"exact"}
    assert set(found) == {
        "accuracy", "balanced_accuracy", "macro_recall", "macro_precision", "macro_f1",
        "sensitivity", "specificity", "auroc",
    }  # fmt: skip
    assert found["accuracy"].low == pytest.approx(0.025 ** (1 / 40))
    of_class = 0.025 ** (1 / 20)
    assert found["sensitivity"].low == found["auroc"].low == pytest.approx(of_class)
    assert found["balanced_accuracy"].low == pytest.approx(1 - (1 - of_class) / math.sqrt(2))
    assert found["macro_f1"].low == pytest.approx(2 * of_class / (1 + of_class))
    assert ours.per_class[0]["recall"] == Interval(pytest.approx(of_class), 1, "exact")
    grouped = intervals((torch.eye(2)[labels], labels), groups=[str(i // 4) for i in range(40)])
    assert grouped.overall["accuracy"] == Interval(pytest.approx(0.025 ** (1 / 10)), 1, "exact")
    # Each patient has images of both classes: of ten patients, five pairs are independent.
    assert grouped.overall["auroc"] == Interval(pytest.approx(0.025 ** (1 / 5)), 1, "exact")


def test_one_mistake_more_does_not_narrow_an_interval_from_below() -> None:
    lows = []
    for mistakes in range(20):
        labels = torch.arange(200) % 2
        given_ = labels.clone()
        given_[:mistakes] = 1 - given_[:mistakes]
        ours = intervals((torch.eye(2)[given_], labels)).overall
        interval, mean = ours["accuracy"], ours["balanced_accuracy"]
        assert interval is not None
        assert mean is not None
        assert (interval.method == "exact") == (mistakes < 10)
        lows.append((interval.low, mean.low))
    # The percentiles of ten mistakes may lie a little above the exact end of nine.
    assert (np.diff(lows, axis=0) < 0.01).all()


def test_one_unit_has_exact_intervals_alone() -> None:
    ours = intervals(make(0, 30), groups=["one"] * 30)
    assert ours.units == 1
    found = [interval for interval in ours.overall.values() if interval is not None]
    assert found
    assert all(interval.method == "exact" and width(interval) > 0.6 for interval in found)


def test_a_class_of_one_image_has_a_wide_recall_and_no_area() -> None:
    probabilities, labels = make(0, 100)
    labels[:] = 0
    labels[7] = 1
    row = intervals((probabilities, labels)).per_class[1]
    assert row["auroc"] is None
    assert row["average_precision"] is None
    assert width(row["recall"]) == pytest.approx(0.975)


def test_an_absent_class_has_no_intervals() -> None:
    probabilities, labels = make(0, 50, 3)
    row = intervals((probabilities, labels.clamp(max=1))).per_class[2]
    assert {name for name, interval in row.items() if interval is not None} == {"precision"}


def test_calibrated_answers_may_have_no_calibration_error() -> None:
    ends = [intervals(make(seed, 300)).overall["expected_calibration_error"] for seed in range(20)]
    assert sum(interval is not None and interval.low == 0 for interval in ends) >= 17
    probabilities, labels = make(0, 300)
    surer = (4 * probabilities.log()).softmax(1)
    interval = intervals((surer, labels)).overall["expected_calibration_error"]
    assert interval is not None
    assert interval.low > 0.05


@pytest.mark.parametrize("n", [40, 200])
def test_the_true_value_lies_inside_about_as_often_as_the_level_says(n: int) -> None:
    # Two normal distributions at a distance of 1.5 deviations, and the answers that fit them.
    strength, held, rounds = 1.5, dict.fromkeys(("accuracy", "auroc", "sensitivity"), 0), 120
    truth = {
        "accuracy": float(norm.cdf(strength / 2)),
        "auroc": float(norm.cdf(strength / math.sqrt(2))),
        "sensitivity": float(norm.cdf(strength / 2)),
    }
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, n)
        positive = expit(strength * (rng.normal(size=n) + strength * (labels - 0.5)))
        case = torch.from_numpy(np.stack([1 - positive, positive], 1)), torch.from_numpy(labels)
        overall = intervals(case, seed=seed).overall
        for name, true in truth.items():
            interval = overall[name]
            held[name] += interval is not None and interval.low <= true <= interval.high
    # Four standard errors below 95 %; percentiles alone fall to 85 % with few images.
    assert min(held.values()) >= 0.87 * rounds


def test_draws_in_parts_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(0, 120, 3)
    whole = intervals(case, resamples=1000).overall
    monkeypatch.setattr(drawing, "_CHUNK", 120 * 64)
    monkeypatch.setattr(drawing, "_RANKED_WORK", 120 * 3 * 200)
    parts = intervals(case, resamples=1000).overall
    for name, error in (("log_loss", 0.1), ("macro_f1", 0.1), ("auroc", 0.2)):
        one, other = whole[name], parts[name]
        assert one is not None
        assert other is not None
        assert one != other
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=error * width(one))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["a"]}, "groups: got 1"),
        ({"resamples": 0}, "resamples: got 0"),
        ({"level": 1.0}, r"level: got 1\.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intervals(make(0, 10), **options)


def test_shapes_that_do_not_fit_are_refused() -> None:
    probabilities, labels = make(0, 10)
    with pytest.raises(ValueError, match=r"expected \[N, 3\]"):
        bootstrap_intervals(probabilities, labels, names(3), task="multiclass")
    with pytest.raises(ValueError, match="targets: got 9"):
        intervals((probabilities, labels[:9]))
