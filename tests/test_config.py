"""The vocabulary: types, ranges and rules across groups."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from finetune.config import VERBS, DatasetConfig, ModelConfig, TrainConfig, expand_home
from finetune.errors import ConfigError
from finetune.validation import key_types, validate

DATASET: dict[str, Any] = {
    "source": "folder",
    "name": None,
    "root": "flowers",
    "val_fraction": 0.2,
    "test_fraction": 0.0,
    "monitor": "accuracy",
    "max_megapixels": 200,
    "workers": "auto",
}
TRAIN: dict[str, Any] = {
    "dataset": DATASET,
    "augmentation": {"transforms": [{"name": "HorizontalFlip", "p": 0.5}]},
    "model": {
        "backbone": "resnet18",
        "pretrained": True,
        "weights": None,
        "image_size_px": None,
        "resize_mode": "crop",
    },
    "head": {"name": "linear", "dropout": 0.0},
    "freeze": {"policy": "none", "epochs_per_stage": 1},
    "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
    "optimizer": {
        "name": "adamw",
        "lr": 1e-3,
        "backbone_lr_factor": 0.1,
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "momentum": 0.9,
    },
    "scheduler": {"name": "cosine", "warmup_epochs": 0.5, "final_lr_factor": 0.01},
    "trainer": {
        "accelerator": "auto",
        "strategy": "auto",
        "devices": "auto",
        "num_nodes": 1,
        "precision": "auto",
        "epochs": 5,
        "batch_size": 32,
        "accumulate_batches": 1,
        "gradient_clip": 1.0,
        "early_stopping_patience": None,
    },
    "logger": None,
    "seed": 0,
    "runs": "runs",
    "name": None,
    "resume": None,
    "debug": False,
}


def changed(**values: Any) -> dict[str, Any]:
    """Return the settings of a training with some changed; ``__`` stands for a dot."""
    settings = {k: dict(v) if isinstance(v, dict) else v for k, v in TRAIN.items()}
    for key, value in values.items():
        group, _, name = key.rpartition("__")
        (settings[group] if group else settings)[name] = value
    return settings


def train_config(**values: Any) -> TrainConfig:
    return validate(TrainConfig, changed(**values))


def refusal(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        train_config(**values)
    return str(caught.value)


def test_the_settings_of_these_tests_are_valid():
    assert train_config().optimizer.lr == 1e-3


# --- types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_has_a_default_here_but_the_group_that_can_be_taken_away(verb):
    def optional(model: type[BaseModel]) -> set[str]:
        return {name for name, field in model.model_fields.items() if not field.is_required()}

    assert optional(VERBS[verb]) == ({"logger"} if verb == "train" else set())


@pytest.mark.parametrize("key", [key for key in key_types(TrainConfig) if "." not in key])
def test_every_group_and_value_is_needed(key):
    settings = changed()
    del settings[key]
    if key == "logger":
        assert validate(TrainConfig, settings).logger is None
        return
    with pytest.raises(ConfigError, match=rf"^{key}: missing; give {key}=VALUE\.$"):
        validate(TrainConfig, settings)


def test_settings_do_not_change():
    config = train_config()
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("trainer__precision", 32, "32"),
        ("trainer__devices", "2", 2),  # from ${oc.env:…}, which is always text
        ("trainer__devices", "auto", "auto"),
        ("dataset__workers", 0, 0),
        ("dataset__name", 2024, "2024"),
        ("name", 7, "7"),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("debug", "true", True),
        ("model__weights", "~/r18.pth", Path.home() / "r18.pth"),
        ("runs", "~", Path.home()),
        ("trainer__gradient_clip", None, None),
        ("optimizer__layer_decay", 1, 1.0),
    ],
)
def test_values_become_what_they_stand_for(key, given, kept):
    config: Any = train_config(**{key: given})
    for part in key.split("__"):
        config = getattr(config, part)
    assert config == kept
    assert type(config) in (type(kept), type(Path()))


NUMBERS = [
    "dataset__val_fraction",
    "dataset__max_megapixels",
    "dataset__workers",
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
    "seed",
]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [True, False, math.inf, -math.inf, math.nan, "x", [], {}])
def test_what_is_no_number_is_refused_by_the_key(key, value):
    assert refusal(**{key: value}).startswith(f"{key.replace('__', '.')}: got ")


def test_true_is_not_taken_for_one():
    message = refusal(trainer__early_stopping_patience=True)
    assert message == "trainer.early_stopping_patience: got true, expected a number."


# --- ranges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("seed", [0, 2**32 - 1], [-1, 2**32, 0.5]),
        ("dataset__val_fraction", [0.01, 0.99], [0, 1, -0.1]),
        ("dataset__test_fraction", [0, 0.79], [1, -0.1]),
        ("dataset__max_megapixels", [0.01], [0, -1]),
        ("dataset__workers", [0, 256, "auto"], [-1, 257, 1.5, "all", None]),
        ("dataset__monitor", ["accuracy", "balanced_accuracy", "macro_f1", "loss"], ["f1", None]),
        ("model__image_size_px", [16, 2048, None], [15, 2049, 32.5]),
        ("model__resize_mode", ["crop", "pad", "squash"], ["stretch"]),
        ("model__backbone", ["nano"], [""]),
        ("head__dropout", [0, 0.99], [1, -0.1]),
        ("freeze__policy", ["none", "backbone", "gradual"], ["all", None]),
        ("freeze__epochs_per_stage", [1], [0]),
        ("loss__label_smoothing", [0, 0.99], [1, -0.1]),
        ("optimizer__backbone_lr_factor", [1e-9, 1], [0, 1.01]),
        ("optimizer__layer_decay", [1e-9, 1], [0, 1.01]),
        ("optimizer__weight_decay", [0, 10], [-1e-9]),
        ("optimizer__momentum", [0, 0.999], [1, -0.1]),
        ("scheduler__warmup_epochs", [0, 4.99], [-1, 5]),
        ("scheduler__final_lr_factor", [0, 1], [-0.1, 1.1]),
        ("trainer__accelerator", ["auto", "cpu", "gpu"], ["tpu"]),
        ("trainer__devices", [1, 8, "auto"], [0, -1, "all", None]),
        ("trainer__num_nodes", [1], [0, "auto"]),
        ("trainer__precision", ["auto", 32, "32", "bf16-mixed", "16-mixed"], [16, "64", None]),
        ("trainer__epochs", [1, 1000], [0, 1.5]),
        ("trainer__batch_size", [1], [0]),
        ("trainer__accumulate_batches", [1], [0]),
        ("trainer__gradient_clip", [1e-9, None], [0, -1]),
        ("trainer__early_stopping_patience", [1, None], [0]),
    ],
)
def test_ranges(key, inside, outside):
    for value in inside:
        train_config(**{key: value})
    for value in outside:
        assert refusal(**{key: value}).startswith(key.replace("__", ".")), value


@given(st.floats())
def test_a_learning_rate_is_any_finite_positive_number(lr):
    if math.isfinite(lr) and lr > 0:
        assert train_config(optimizer__lr=lr).optimizer.lr == lr
    else:
        assert refusal(optimizer__lr=lr).startswith("optimizer.lr: got ")


@pytest.mark.parametrize("name", ["a", "run 1", "2024-01-02_03", "Größe.v2", "_x"])
def test_a_name_is_the_name_of_one_folder(name):
    assert train_config(name=name).name == name
    assert train_config(dataset__name=name).dataset.name == name


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "-rf", " x", "a\nb", "$HOME"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    assert refusal(name=name).startswith(f"name: got `{name}`, expected letters, digits")
    assert refusal(dataset__name=name).startswith(f"dataset.name: got `{name}`")


# --- heads, schedules and loggers, which have several shapes ----------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"head": {"name": "mlp", "dropout": 0.2, "hidden_features": 512}},
        {"head": {"name": "cosine", "dropout": 0, "scale": 16}},
        {"scheduler": {"name": "constant", "warmup_epochs": 0}},
        {
            "scheduler": {
                "name": "onecycle",
                "warmup_fraction": 0.25,
                "initial_lr_factor": 0.04,
                "final_lr_factor": 0,
            }
        },
        {"logger": {"name": "csv"}},
        {"logger": {"name": "mlflow", "experiment_name": "x", "tracking_uri": None}},
    ],
)
def test_every_shape_keeps_its_own_values(settings):
    config = train_config(**settings)
    for group, values in settings.items():
        assert getattr(config, group).model_dump() == values


@pytest.mark.parametrize(
    ("key", "settings", "bad"),
    [
        ("head.hidden_features", {"name": "mlp", "dropout": 0, "hidden_features": 8}, 0),
        ("head.scale", {"name": "cosine", "dropout": 0, "scale": 16}, 0),
    ],
)
def test_ranges_of_heads(key, settings, bad):
    train_config(head=settings)
    assert refusal(head={**settings, key.split(".")[1]: bad}).startswith(f"{key}: got {bad}")


@pytest.mark.parametrize("name", ["warmup_fraction", "initial_lr_factor", "final_lr_factor"])
def test_ranges_of_onecycle(name):
    settings = {
        "name": "onecycle",
        "warmup_fraction": 0.25,
        "initial_lr_factor": 0.04,
        "final_lr_factor": 0.0,
    }
    message = refusal(scheduler={**settings, name: 1.5})
    assert message.startswith(f"scheduler.{name}: got 1.5, expected a number <")


# --- rules across groups ----------------------------------------------------------------------


def test_fractions_leave_something_to_train_on():
    message = refusal(dataset__val_fraction=0.6, dataset__test_fraction=0.4)
    assert message.startswith("dataset: val_fraction 0.6 + test_fraction 0.4 leave nothing")
    train_config(dataset__val_fraction=0.6, dataset__test_fraction=0.39)


@given(
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_fractions_are_accepted_exactly_where_their_sum_is_below_one(val, test):
    values = {**DATASET, "val_fraction": val, "test_fraction": test}
    if val + test < 1:
        assert validate(DatasetConfig, values).test_fraction == test
    else:
        with pytest.raises(ConfigError, match="sum must be < 1"):
            validate(DatasetConfig, values)


def test_a_warmup_ends_before_the_training_does():
    message = refusal(trainer__epochs=2, scheduler__warmup_epochs=2)
    assert message == ("scheduler.warmup_epochs: got 2, expected less than trainer.epochs (2).")


def test_float16_needs_a_gpu():
    message = refusal(trainer__accelerator="cpu", trainer__precision="16-mixed")
    assert message.startswith("trainer.precision: got 16-mixed, which needs a GPU")
    train_config(trainer__accelerator="gpu", trainer__precision="16-mixed")


def test_fsdp_needs_gpus():
    message = refusal(trainer__accelerator="cpu", trainer__strategy="fsdp")
    assert message.startswith("trainer.strategy: got fsdp, which needs GPUs")
    train_config(trainer__accelerator="gpu", trainer__strategy="fsdp")


# --- paths ------------------------------------------------------------------------------------


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(Path("~")) == Path("/home/me")
    assert expand_home(Path("~/a ~/b")) == Path("/home/me/a ~/b")
    assert expand_home(Path("a/~/b")) == Path("a/~/b")


def test_a_folder_that_only_looks_like_somebodys_home_stays_as_it_is():
    assert expand_home(Path("~no such user/x")) == Path("~no such user/x")


@pytest.mark.parametrize("key", ["dataset__root", "model__weights", "runs", "resume"])
def test_an_empty_path_is_not_the_current_folder(key):
    expected = f"{key.replace('__', '.')}: got nothing, expected a file or folder."
    assert refusal(**{key: ""}) == expected


@given(st.text(min_size=1).filter(lambda text: "\0" not in text and text[0] != "~"))
def test_any_other_path_stays_as_it_is(text):
    values = {**TRAIN["model"], "weights": text}
    assert validate(ModelConfig, values).weights == Path(text)
