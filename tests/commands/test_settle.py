"""What ``auto`` becomes."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from finetune.cli import _compose, _prepare, _tokens
from finetune.commands.settle import NEEDS_BOTH, settle
from finetune.config import TrainConfig
from finetune.data.discover import ImageFolder, Sample
from finetune.data.labelled_images import make_targets
from finetune.errors import ConfigError
from finetune.evaluation.epoch import METRICS, training_metrics
from finetune.validation import validate


def config(*words: str) -> TrainConfig:
    tokens, _ = _tokens("train", ["dataset.root=x", *words])
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    return validate(TrainConfig, values)


def folder(**counts: int) -> ImageFolder:
    samples = [
        Sample(f"{name}/{index}", (name,), "train")
        for name, count in counts.items()
        for index in range(count)
    ]
    # What is validated with decides nothing here.
    samples += [Sample(f"val/{index}", ("ab"[index == 0],), "val") for index in range(1000)]
    return ImageFolder(Path("x"), tuple(counts), tuple(samples), ())


def test_equal_classes_are_left_alone() -> None:
    settled, reasons = settle(config(), folder(a=30, b=20))
    assert (settled.dataset.balance, settled.dataset.monitor) == ("none", "accuracy")
    assert "1.5 times" in reasons["balance"]
    assert reasons["monitor"] == "accuracy on val (the classes are of similar size)"


def test_unequal_classes_are_adjusted_and_watched_by_balanced_accuracy() -> None:
    settled, reasons = settle(config(), folder(a=60, b=20))
    assert settled.dataset.balance == "logit_adjustment"
    assert settled.dataset.monitor == "balanced_accuracy"
    assert "3.0 times" in reasons["balance"]


def test_what_was_typed_stands() -> None:
    typed = config("dataset.balance=sampler", "dataset.monitor=auroc")
    settled, reasons = settle(typed, folder(a=60, b=20))
    assert (settled.dataset.balance, settled.dataset.monitor) == ("sampler", "auroc")
    assert reasons["balance"] == "sampler (as asked)"
    assert settled.dataset.metrics == [*typed.dataset.metrics, "auroc"]


@pytest.mark.parametrize("balance", ["sampler", "logit_adjustment"])
def test_several_labels_cannot_be_balanced_as_one_is(balance: str) -> None:
    typed = config("task=multilabel", "dataset.manifest=x.csv", f"dataset.balance={balance}")
    with pytest.raises(ConfigError, match=f"got {balance}, which needs one class per image"):
        settle(typed, folder(a=6, b=20))


def test_several_labels_are_watched_by_mean_average_precision() -> None:
    settled, _ = settle(config("task=multilabel", "dataset.manifest=x.csv"), folder(a=6, b=200))
    assert settled.dataset.monitor == "mean_average_precision"
    assert settled.dataset.balance == "loss"


def with_val(*labels: tuple[str, ...]) -> ImageFolder:
    samples = [Sample(f"train/{name}", (name,), "train") for name in "ab"]
    samples += [Sample(f"val/{index}", names, "val") for index, names in enumerate(labels)]
    return ImageFolder(Path("x"), ("a", "b"), tuple(samples), ())


@pytest.mark.parametrize("monitor", METRICS)
@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("multiclass", [("a",), ("a",)]),
        ("multiclass", [("b",), ("b",)]),
        ("multiclass", [("a",), ("b",)]),
        ("multilabel", [(), ()]),
        ("multilabel", [("a", "b"), ("a", "b")]),
        ("multilabel", [("a",), ("a", "b")]),
    ],
)
def test_what_will_be_undefined_is_refused_at_once(
    monitor: str, task: str, labels: list[tuple[str, ...]]
) -> None:
    folder = with_val(*labels)
    words = [f"task={task}", "dataset.manifest=x.csv", f"dataset.monitor={monitor}"]
    if len(set(labels)) == 1 and monitor in NEEDS_BOTH:
        shown = " and ".join(labels[0]) or "no label"
        with pytest.raises(ConfigError, match=f"{monitor}, which compares .* show {shown}\\."):
            settle(config(*words), folder)
        return
    with suppress(ConfigError):  # some are refused with several labels only
        settled, _ = settle(config(*words), folder)
        metric = training_metrics(2, task=settled.task, names=[monitor])
        val = [sample for sample in folder.samples if sample.split == "val"]
        targets = make_targets(val, folder.class_names, is_multilabel=task == "multilabel")
        metric.update(torch.full((2, 2), 0.6), targets)
        assert metric.compute()[monitor].isfinite()
