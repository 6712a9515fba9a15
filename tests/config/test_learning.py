"""What learns, how, on what, and who watches."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import TrainConfig

Build = Callable[..., TrainConfig]
Refuse = Callable[..., str]

ONE_CYCLE = {
    "name": "onecycle",
    "warmup_fraction": 0.25,
    "initial_lr_factor": 0.04,
    "final_lr_factor": 0.0,
}


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("model__image_size_px", [16, 2048, None, "auto"], [15, 2049, 32.5, "find"]),
        ("model__resize_mode", ["crop", "pad", "squash"], ["stretch"]),
        ("model__backbone", ["nano"], [""]),
        ("head__dropout", [0, 0.99], [1, -0.1]),
        (
            "freeze__policy",
            ["none", "backbone", "gradual", "batchnorm_only", "probe_then_finetune"],
            ["all", None],
        ),
        ("freeze__epochs_per_stage", [1], [0]),
        ("freeze__stages", [0, 3], [-1, 1.5]),
        ("freeze__batchnorm", ["auto", "frozen", "train"], ["none", None]),
        ("loss__label_smoothing", [0, 0.99], [1, -0.1]),
        ("optimizer__name", ["adamw", "lion"], [""]),
        ("optimizer__lr", [1e-9, 1, "auto", "find"], [0, -1, "none"]),
        ("optimizer__backbone_lr_factor", [1e-9, 1, 100, "auto"], [0, 100.1, "find"]),
        ("optimizer__layer_decay", [1e-9, 1, "auto"], [0, 1.01]),
        ("optimizer__weight_decay", [0, 10, "auto"], [-1e-9]),
        ("optimizer__momentum", [0, 0.999], [1, -0.1]),
        ("scheduler__warmup_epochs", [0, 4.99, "auto"], [-1]),
        ("scheduler__final_lr_factor", [0, 1], [-0.1, 1.1]),
        ("trainer__accelerator", ["auto", "cpu", "gpu"], ["tpu"]),
        ("trainer__strategy", ["auto", "ddp", "fsdp"], ["dp", None]),
        ("trainer__devices", [1, 8, "auto"], [0, -1, "all", None]),
        ("trainer__num_nodes", [1], [0, "auto"]),
        ("trainer__precision", ["auto", "32", "bf16-mixed", "16-mixed"], [16, "64", None]),
        ("trainer__epochs", [1, 1000, "auto"], [0, 1.5, "find"]),
        ("trainer__batch_size", [1, "auto", "find"], [0]),
        ("trainer__accumulate_batches", [1], [0]),
        ("trainer__gradient_clip", [1e-9, None], [0, -1]),
        ("trainer__early_stopping_patience", [1, "auto", None], [0]),
        ("trainer__max_time_minutes", [0.1, None], [0, "auto"]),
        ("trainer__checkpoint_every_minutes", [0.1, None], [0, "auto"]),
        ("trainer__ema_decay", [0, 0.999, "auto"], [1, -0.1]),
    ],
)
def test_ranges(
    key: str, inside: list[Any], outside: list[Any], train_config: Build, refusal: Refuse
) -> None:
    group, name = key.split("__")
    for value in inside:
        assert getattr(getattr(train_config(**{key: value}), group), name) == value
    for value in outside:
        assert refusal(**{key: value}).startswith(f"{group}.{name}: got "), value


@pytest.mark.parametrize(
    "key",
    [
        "model__image_size_px",
        "head__dropout",
        "freeze__epochs_per_stage",
        "loss__label_smoothing",
        "optimizer__lr",
        "optimizer__momentum",
        "scheduler__warmup_epochs",
        "trainer__devices",
        "trainer__gradient_clip",
        "trainer__early_stopping_patience",
    ],
)
@pytest.mark.parametrize("value", [True, math.inf, math.nan, "x", []])
def test_every_number_is_one_of_ours(key: str, value: Any, refusal: Refuse) -> None:
    assert refusal(**{key: value}).startswith(f"{key.replace('__', '.')}: got ")


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("trainer__precision", 32, "32"),
        ("trainer__devices", "2", 2),  # from ${oc.env:…}, which is always text
        ("model__weights", "~/r18.pth", Path.home() / "r18.pth"),
        ("optimizer__layer_decay", 1, 1.0),
    ],
)
def test_values_become_what_they_stand_for(
    key: str, given: Any, kept: Any, train_config: Build
) -> None:
    group, name = key.split("__")
    value = getattr(getattr(train_config(**{key: given}), group), name)
    assert value == kept
    assert type(value) is type(kept)


@given(lr=st.floats())
def test_a_learning_rate_is_any_finite_positive_number(
    train_config: Build, refusal: Refuse, lr: float
) -> None:
    if math.isfinite(lr) and lr > 0:
        assert train_config(optimizer__lr=lr).optimizer.lr == lr
    else:
        assert refusal(optimizer__lr=lr).startswith("optimizer.lr: got ")


# --- heads, schedules and loggers, which have several shapes ----------------------------------


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("head", {"name": "linear", "dropout": 0.5}),
        ("head", {"name": "mlp", "dropout": 0.2, "hidden_features": 512}),
        ("head", {"name": "cosine", "dropout": 0, "scale": 16}),
        ("loss", {"name": "bce", "label_smoothing": 0.2}),
        ("loss", {"name": "focal", "label_smoothing": 0, "gamma": 0}),
        ("scheduler", {"name": "constant", "warmup_epochs": 0}),
        ("scheduler", ONE_CYCLE),
        ("logger", {"name": "csv"}),
        ("logger", {"name": "tensorboard"}),
        ("logger", {"name": "mlflow", "experiment_name": "x", "tracking_uri": None}),
        ("logger", {"name": "wandb", "project": "x", "offline": True}),
    ],
)
def test_every_shape_keeps_its_own_values(
    group: str, values: dict[str, Any], train_config: Build
) -> None:
    assert getattr(train_config(**{group: values}), group).model_dump() == values


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("head.hidden_features", {"name": "mlp", "dropout": 0, "hidden_features": 0}),
        ("head.scale", {"name": "cosine", "dropout": 0, "scale": 0}),
        ("loss.label_smoothing", {"name": "bce", "label_smoothing": 1}),
        ("loss.gamma", {"name": "focal", "label_smoothing": 0, "gamma": -0.5}),
        ("scheduler.warmup_epochs", {"name": "constant", "warmup_epochs": -1}),
        ("scheduler.warmup_fraction", {**ONE_CYCLE, "warmup_fraction": 1}),
        ("scheduler.initial_lr_factor", {**ONE_CYCLE, "initial_lr_factor": 0}),
        ("scheduler.final_lr_factor", {**ONE_CYCLE, "final_lr_factor": 1.5}),
    ],
)
def test_ranges_of_every_shape(key: str, settings: dict[str, Any], refusal: Refuse) -> None:
    group, name = key.split(".")
    assert refusal(**{group: settings}).startswith(f"{key}: got {settings[name]}, expected")


def test_a_key_of_another_shape_says_whose_it_is(refusal: Refuse) -> None:
    message = refusal(head={"name": "linear", "dropout": 0, "scale": 16})
    assert message == "head.scale: head=linear has no such key; head=cosine has."
