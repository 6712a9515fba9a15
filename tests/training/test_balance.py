import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import config
from finetune.training import balance
from finetune.training.balance import (
    choose_balance,
    choose_monitor,
    class_weights,
    log_priors,
    positive_weights,
)

counts_ = st.lists(st.integers(0, 10_000), min_size=2, max_size=20).filter(any)


def test_the_words_are_those_of_the_config():
    assert set(get_args(balance.Balance)) == set(get_args(config.Balance))
    assert set(get_args(balance.Monitor)) <= set(get_args(config.MetricName))


@given(counts_)
def test_the_mean_weight_over_the_images_is_one(counts):
    weights = class_weights(counts)
    total = sum(weight * count for weight, count in zip(weights, counts, strict=True))
    assert total / sum(counts) == pytest.approx(1)
    assert all(math.isfinite(weight) and weight > 0 for weight in weights)


def test_each_class_weighs_the_same_in_all():
    weights = class_weights([900, 90, 10])
    parts = [weight * count for weight, count in zip(weights, [900, 90, 10], strict=True)]
    assert parts == pytest.approx([parts[0]] * 3)


@given(counts_)
def test_the_priors_are_logarithms_of_shares(counts):
    assert sum(math.exp(prior) for prior in log_priors(counts)) == pytest.approx(1)
    assert log_priors([3, 1]) == pytest.approx([math.log(0.75), math.log(0.25)])


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1000, 5000))
def test_weights_of_labels_are_capped(counts, num_images):
    for weight, count in zip(positive_weights(counts, num_images), counts, strict=True):
        assert 0.1 <= weight <= 10
        if num_images / 11 <= count <= num_images * 10 / 11:
            assert weight * count == pytest.approx(num_images - count)


@pytest.mark.parametrize(
    ("counts", "balance", "monitor"),
    [
        ([100, 100], "none", "accuracy"),
        ([199, 100], "none", "accuracy"),
        ([200, 100], "logit_adjustment", "balanced_accuracy"),
        ([3875, 500, 1341], "logit_adjustment", "balanced_accuracy"),
        ([3, 0], "logit_adjustment", "balanced_accuracy"),
    ],
)
def test_unequal_classes_are_adjusted_and_monitored_by_class(counts, balance, monitor):
    assert choose_balance(counts, task="multiclass", num_images=sum(counts))[0] == balance
    assert choose_monitor(counts, task="multiclass")[0] == monitor


def test_the_reason_says_the_ratio():
    reason = choose_balance([3875, 1341], task="multiclass", num_images=5216)[1]
    assert "2.9 times" in reason
    assert "3,875 and 1,341" in reason
    assert choose_monitor([3875, 1341], task="multiclass")[1] == "the classes are of unequal size"


@pytest.mark.parametrize(("counts", "balance"), [([50, 10], "none"), ([50, 9], "loss")])
def test_rare_labels_are_weighted(counts, balance):
    chosen, reason = choose_balance(counts, task="multilabel", num_images=100)
    assert chosen == balance
    assert f"{counts[1]}.0 %" in reason
    assert choose_monitor(counts, task="multilabel")[0] == "mean_average_precision"
