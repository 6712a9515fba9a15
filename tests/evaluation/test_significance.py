"""Whether one model is better than another."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from finetune.evaluation.metrics import classification_metrics
from finetune.evaluation.multilabel import multilabel_metrics
from finetune.evaluation.significance import (
    Score,
    difference,
    holm,
    mcnemar,
    number_units,
    paired_bootstrap,
    paired_score,
    sign_interval,
    swap_test,
)

COUNTS = st.integers(0, 200)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def answers(seed: int, n: int, num_classes: int, *, skill: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what two models say, the second of which is better by ``skill``, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, n)
    logits = rng.normal(size=(2, n, num_classes))
    logits[0, np.arange(n), truth] += 1
    logits[1, np.arange(n), truth] += 1 + skill
    first, second = torch.tensor(logits).softmax(2)
    return first, second, torch.tensor(truth)


def score_of(metric: str, first: Tensor, second: Tensor, targets: Tensor) -> Score:
    task = "multilabel" if targets.ndim == 2 else "multiclass"
    units = number_units([None] * len(first))
    return paired_score(metric, first, second, targets, task=task, units=units)


# --- McNemar ----------------------------------------------------------------------------------


def test_mcnemar_of_a_known_table():
    # Both tails of 9 coins that show 1 or fewer, or 8 or more: 2 * (1 + 9) / 2**9.
    assert mcnemar(1, 8) == pytest.approx(20 / 512)


@settings(max_examples=40)
@given(COUNTS, COUNTS)
def test_mcnemar_is_the_doubled_tail_of_a_fair_coin(only_first, only_second):
    n, k = only_first + only_second, min(only_first, only_second)
    expected = min(1.0, 2 * binom.cdf(k, n, 0.5))
    assert mcnemar(only_first, only_second) == pytest.approx(expected)
    assert mcnemar(only_first, only_second) == mcnemar(only_second, only_first)


@given(COUNTS)
def test_as_many_of_each_is_no_difference(count):
    assert mcnemar(count, count) == 1


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_interval_holds_zero_just_where_mcnemar_finds_nothing(only_first, only_second):
    low, high = sign_interval(only_first, only_second, 100)
    assert -1 <= low <= (only_second - only_first) / 100 <= high <= 1
    assert (low <= 0 <= high) == (mcnemar(only_first, only_second) > 0.05)
    assert sign_interval(only_second, only_first, 100) == pytest.approx((-high, -low))


# --- Holm -------------------------------------------------------------------------------------


def test_holm_of_a_known_family():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
def test_holm_lies_between_no_correction_and_bonferroni(p_values):
    corrected = holm(p_values)
    for p, after in zip(p_values, corrected, strict=True):
        assert p <= after <= min(1.0, p * len(p_values)) + 1e-15
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order(p_values, random):
    order = list(range(len(p_values)))
    random.shuffle(order)
    shuffled = holm([p_values[index] for index in order])
    assert shuffled == [holm(p_values)[index] for index in order]


# --- units ------------------------------------------------------------------------------------


def test_units_are_groups_and_single_images():
    assert number_units(["a", None, "b", "a", None]).tolist() == [0, 1, 2, 0, 3]


# --- the paired score -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric",
    [
        *("accuracy", "balanced_accuracy", "macro_f1", "auroc", "mean_average_precision"),
        *("log_loss", "expected_calibration_error"),
    ],
)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_difference_is_that_of_the_metrics(metric, num_classes):
    first, second, truth = answers(0, 60, num_classes, skill=1)
    names = [str(index) for index in range(num_classes)]
    values = [getattr(classification_metrics(p, truth, names), metric) for p in (first, second)]
    found = difference(score_of(metric, first, second, truth), 60)
    assert found == pytest.approx(values[1] - values[0], abs=1e-6)


@pytest.mark.parametrize("metric", ["exact_match", "macro_f1", "mean_average_precision", "auroc"])
def test_the_same_with_several_labels(metric):
    first, second, _ = answers(1, 50, 3, skill=0)
    truth = torch.tensor(np.random.default_rng(2).random((50, 3)) < 0.4).float()
    values = [getattr(multilabel_metrics(p, truth, list("abc")), metric) for p in (first, second)]
    found = difference(score_of(metric, first, second, truth), 50)
    assert found == pytest.approx(values[1] - values[0], abs=1e-6)


def test_probabilities_on_another_scale_rank_alike():
    first, _, truth = answers(0, 40, 2, skill=0)
    score = score_of("auroc", first, first**3, truth)
    assert difference(score, 40) == 0
    assert swap_test(score, 40, resamples=200) == 1


# --- bootstrap and swap test ------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(["accuracy", "balanced_accuracy", "auroc"]))
def test_exchanging_the_models_turns_the_difference(seed, metric):
    first, second, truth = answers(seed, 30, 2, skill=0.5)
    there, back = score_of(metric, first, second, truth), score_of(metric, second, first, truth)
    assert difference(there, 30) == pytest.approx(-difference(back, 30), nan_ok=True)
    low, high = paired_bootstrap(there, 30, resamples=150) or (math.nan, math.nan)
    turned = paired_bootstrap(back, 30, resamples=150) or (math.nan, math.nan)
    assert turned == pytest.approx((-high, -low), abs=1e-12, nan_ok=True)
    assert swap_test(there, 30, resamples=150) == swap_test(back, 30, resamples=150)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(["accuracy", "macro_f1", "auroc", "log_loss"]))
def test_a_model_is_as_good_as_itself(seed, metric):
    first, _, truth = answers(seed, 25, 3, skill=0)
    score = score_of(metric, first, first, truth)
    assert difference(score, 25) == 0
    assert paired_bootstrap(score, 25, resamples=100) == (0, 0)
    assert swap_test(score, 25, resamples=100) == 1


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_the_swap_test_of_accuracy_is_mcnemars(seed):
    first, second, truth = answers(seed, 40, 3, skill=0.8)
    right = [p.argmax(1) == truth for p in (first, second)]
    exact = mcnemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    p = swap_test(score_of("accuracy", first, second, truth), 40, resamples=4000)
    assert p == pytest.approx(exact, abs=0.04)


def test_a_much_better_model_is_found_and_its_interval_leaves_zero_out():
    first, second, truth = answers(3, 200, 3, skill=3)
    score = score_of("balanced_accuracy", first, second, truth)
    low, high = paired_bootstrap(score, 200, resamples=500) or (0, 0)
    assert 0 < low < difference(score, 200) < high
    assert swap_test(score, 200, resamples=999) == pytest.approx(0.001)


def test_equal_models_are_told_apart_no_more_often_than_stated():
    found = []
    for seed in range(120):
        first, second, truth = answers(seed, 40, 2, skill=0)
        score = score_of("balanced_accuracy", first, second, truth)
        found.append(swap_test(score, 40, resamples=99) or 0)
    # 120 draws of 5 %: more than 13 come once in a thousand times.
    assert sum(p <= 0.05 for p in found) <= 13
    assert np.median(found) > 0.3


def test_few_units_are_swapped_in_every_way():
    # Eight units, in all of which the second alone is right: of 256 ways, two are as extreme.
    truth = torch.zeros(8, dtype=torch.int64)
    first, second = torch.tensor([[0.1, 0.9]] * 8), torch.tensor([[0.9, 0.1]] * 8)
    score = score_of("accuracy", first, second, truth)
    assert swap_test(score, 8, resamples=256) == 2 / 256 == mcnemar(0, 8)
    assert swap_test(score, 8, resamples=255) != 2 / 256


def test_thousands_of_images_are_swapped_at_random():
    first, second, truth = answers(5, 3000, 2, skill=0.5)
    score = score_of("balanced_accuracy", first, second, truth)
    assert swap_test(score, 3000, resamples=99) == 0.01
    low, high = paired_bootstrap(score, 3000, resamples=99) or (0, 0)
    assert 0 < low < difference(score, 3000) < high


def test_images_of_one_group_count_as_one():
    # Two groups of 20 images: whatever happens within one, it happened once.
    truth = torch.zeros(40, dtype=torch.int64)
    good, bad = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    second = good.repeat(40, 1)
    first = torch.cat([good.repeat(20, 1), bad.repeat(20, 1)])
    units = number_units(["a"] * 20 + ["b"] * 20)
    score = paired_score("accuracy", first, second, truth, task="multiclass", units=units)
    assert difference(score, 2) == 0.5
    assert paired_bootstrap(score, 2, resamples=500) == (0, 1)
    assert swap_test(score, 2, resamples=500) == 1  # every swap makes as large a difference
    assert mcnemar(0, 20) < 1e-5  # what single images would have said


def test_what_is_undefined_is_said():
    first, second, _ = answers(0, 10, 2, skill=1)
    score = score_of("auroc", first, second, torch.zeros(10, dtype=torch.int64))
    assert math.isnan(difference(score, 10))
    assert paired_bootstrap(score, 10, resamples=20) is None
    assert swap_test(score, 10, resamples=20) is None


def test_resamples_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    first, second, truth = answers(4, 30, 2, skill=1)
    score = score_of("accuracy", first, second, truth)
    whole = (paired_bootstrap(score, 30, resamples=100), swap_test(score, 30, resamples=100))
    monkeypatch.setattr("finetune.evaluation.significance._CHUNK", 30 * 7)
    parts = (paired_bootstrap(score, 30, resamples=100), swap_test(score, 30, resamples=100))
    assert parts == whole
