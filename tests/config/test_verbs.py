"""One model for each verb, and the rules across groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from finetune.config import VERBS, TrainConfig
from finetune.config.types import Group
from finetune.errors import ConfigError
from finetune.validation import key_types, validate

Change = Callable[..., dict[str, Any]]
Build = Callable[..., TrainConfig]
Refuse = Callable[..., str]

SETTINGS: dict[str, dict[str, Any]] = {
    "evaluate": {
        "evidence": {
            "calibrate": True,
            "coverage": None,
            "max_error": None,
            "min_sensitivity": 0.95,
            "min_specificity": 0.95,
            "resamples": 0,
            "pictures": 0,
            "report": False,
            "gain": False,
        },
        "run": "runs/flowers",
        "split": "val",
        "root": None,
        "manifest": None,
        "output": None,
        "batch_size": 32,
        "workers": "auto",
        "debug": False,
    },
    "predict": {
        "run": "runs/flowers",
        "trust": False,
        "input": "photos",
        "path_column": None,
        "output": None,
        "probabilities": True,
        "top_k": 0,
        "threshold": None,
        "abstain": None,
        "sets": False,
        "augment": "none",
        "output_features": None,
        "resume": None,
        "processes": "auto",
        "batch_size": 32,
        "workers": 2,
        "debug": False,
    },
    "export": {
        "run": "runs/flowers",
        "format": "torchscript",
        "layout": "timm",
        "precision": "float32",
        "output": None,
        "tolerance": 1e-4,
        "max_accuracy_drop": 0.01,
        "images": 100,
        "debug": False,
    },
    "serve": {
        "run": "runs/flowers",
        "port": 8000,
        "max_megabytes": 20,
        "max_queue": 64,
        "batch_size": 16,
        "debug": False,
    },
    "compare": {
        "runs": ["runs/a", "runs/b"],
        "backbones": None,
        "split": "auto",
        "output": "comparison",
        "resamples": 2000,
        "price_per_hour": None,
        "latency": True,
        "debug": False,
    },
    "cache": {"clear": None, "cache_folder": None, "debug": False},
}


def nested(changed: Change, verb: str) -> dict[str, Any]:
    """Return settings of a verb that takes groups."""
    keys = VERBS[verb].model_fields
    settings = {**changed(), "output": None, "source": None}
    return {key: value for key, value in settings.items() if key in keys}


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_has_a_default_here_but_the_group_that_can_be_taken_away(verb: str) -> None:
    def optional(model: type[BaseModel]) -> set[str]:
        return {name for name, field in model.model_fields.items() if not field.is_required()}

    groups = [kind for kind in key_types(VERBS[verb]).values() if isinstance(kind, type)]
    assert optional(VERBS[verb]) == ({"logger"} if verb == "train" else set())
    assert not any(optional(kind) for kind in groups if issubclass(kind, Group))


@pytest.mark.parametrize("key", [key for key in key_types(TrainConfig) if "." not in key])
def test_every_group_and_value_is_needed(key: str, changed: Change) -> None:
    settings = changed()
    del settings[key]
    if key == "logger":
        assert validate(TrainConfig, settings).logger is None
        return
    with pytest.raises(ConfigError, match=rf"^{key}: missing; give {key}=VALUE\.$"):
        validate(TrainConfig, settings)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_keeps_its_values(verb: str, changed: Change) -> None:
    settings = SETTINGS.get(verb) or nested(changed, verb)
    config = validate(VERBS[verb], settings)
    assert set(config.model_dump()) == set(settings)
    assert config.debug is False  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"^debug: got 5, expected true or false"):
        validate(VERBS[verb], {**settings, "debug": 5})


@pytest.mark.parametrize(
    ("verb", "key", "inside", "outside"),
    [
        ("evaluate", "run", ["~"], ["", None]),
        ("evaluate", "split", ["train", "val", "test"], ["valid", None]),
        ("evaluate", "batch_size", [1], [0, 1.5, True]),
        ("evaluate", "workers", [0, 256, "auto"], [-1, "all"]),
        ("predict", "input", [None, "a/**/*.jpg"], ["", 5]),
        ("predict", "batch_size", [1, "auto"], [0, "all"]),
        ("predict", "processes", [1, 64, "auto"], [0, 65]),
        ("predict", "top_k", [0, 5], [-1, 1.5]),
        ("predict", "threshold", [None, 0.01, 0.99], [0, 1]),
        ("predict", "abstain", ["auto", None, 0.01, 1], [0, 1.1, "maybe"]),
        ("predict", "sets", [True, False], ["perhaps", None]),
        ("compare", "split", ["auto", "train", "val", "test"], ["valid", None]),
        ("compare", "resamples", [100, 100_000], [99, "many"]),
        ("compare", "price_per_hour", [None, 0, 1.5], [-1, "cheap"]),
        ("predict", "resume", [None, True, False], ["perhaps", 2]),
        ("predict", "augment", ["none", "flip", "crops"], ["mirror", None]),
        ("export", "format", ["torchscript", "onnx", "backbone"], ["onx", None]),
        ("export", "layout", ["timm", "torchvision"], ["keras"]),
        ("export", "precision", ["float32", "float16", "int8"], ["int4", 16]),
        ("export", "tolerance", [1e-9, 0.99, "auto"], [0, 1, True]),
        ("export", "max_accuracy_drop", [0, 1], [-0.1, 1.1]),
        ("export", "images", [1], [0]),
        ("serve", "port", [0, 65535], [-1, 65536, "http"]),
        ("serve", "max_megabytes", [0.1, 1000], [0, 1001]),
        ("serve", "max_queue", [1], [0]),
        ("cache", "clear", [None, "audits", "downloads", "images", "all"], ["everything", True]),
    ],
)
def test_ranges(verb: str, key: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        config = validate(VERBS[verb], {**SETTINGS[verb], key: value})
        kept = getattr(config, key)
        assert kept == (Path(value).expanduser() if isinstance(kept, Path) else value)
    for value in outside:
        with pytest.raises(ConfigError, match=f"^{key}: got "):
            validate(VERBS[verb], {**SETTINGS[verb], key: value})


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_a_seed_has_32_bits(seed: int, train_config: Build) -> None:
    assert train_config(seed=seed).seed == seed


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_another_seed_is_refused(seed: float, refusal: Refuse) -> None:
    assert refusal(seed=seed).startswith("seed: got ")


@pytest.mark.parametrize("name", ["a", "run 1", "2024-01-02_03", "Größe.v2", "_x", 7])
def test_a_name_is_the_name_of_one_folder(name: str | int, train_config: Build) -> None:
    assert train_config(name=name).name == str(name)
    assert train_config(dataset__name=name).dataset.name == str(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "-rf", " x", "a\nb", "a\n", "$HOME"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, refusal: Refuse) -> None:
    assert refusal(name=name).startswith(f"name: got `{name}`, expected letters, digits")
    assert refusal(dataset__name=name).startswith(f"dataset.name: got `{name}`")


@pytest.mark.parametrize("key", ["runs", "resume", "cache_folder", "dataset__root"])
def test_an_empty_path_is_named_by_its_key(key: str, refusal: Refuse) -> None:
    expected = f"{key.replace('__', '.')}: got nothing, expected a file or folder."
    assert refusal(**{key: ""}) == expected


# --- rules across groups ----------------------------------------------------------------------


def test_a_warmup_ends_before_the_training_does(refusal: Refuse) -> None:
    message = refusal(trainer__epochs=2, scheduler__warmup_epochs=2)
    assert message == "scheduler.warmup_epochs: got 2, expected less than trainer.epochs (2)."


def test_float16_needs_a_gpu(train_config: Build, refusal: Refuse) -> None:
    message = refusal(trainer__accelerator="cpu", trainer__precision="16-mixed")
    assert message.startswith("trainer.precision: got 16-mixed, which needs a GPU")
    train_config(trainer__accelerator="gpu", trainer__precision="16-mixed")


def test_fsdp_needs_gpus(train_config: Build, refusal: Refuse) -> None:
    message = refusal(trainer__accelerator="cpu", trainer__strategy="fsdp")
    assert message.startswith("trainer.strategy: got fsdp, which needs GPUs")
    train_config(trainer__accelerator="gpu", trainer__strategy="fsdp")


def test_the_nearest_word_is_named() -> None:
    with pytest.raises(ConfigError, match=r"augment: got `flop`.*Did you mean `flip`\?$"):
        validate(VERBS["predict"], {**SETTINGS["predict"], "augment": "flop"})
    with pytest.raises(ConfigError, match=r"expected one of none, flip, crops\.$"):
        validate(VERBS["predict"], {**SETTINGS["predict"], "augment": "xyzzy"})
