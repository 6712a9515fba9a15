"""The settings of a training, to change one at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from finetune.config import TrainConfig
from finetune.errors import ConfigError
from finetune.usage import CONF
from finetune.validation import validate

TRAIN: dict[str, Any] = {
    "dataset": {
        **yaml.safe_load((CONF / "dataset" / "_base.yaml").read_text(encoding="utf-8")),
        "root": "flowers",
    },
    "augmentation": {
        "transforms": [{"name": "HorizontalFlip", "p": 0.5}],
        "random_erasing": 0.0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
    },
    "model": {
        "backbone": "resnet18",
        "pretrained": True,
        "weights": None,
        "image_size_px": None,
        "resize_mode": "crop",
    },
    "head": {"name": "linear", "dropout": 0.0},
    "freeze": {"policy": "none", "epochs_per_stage": 1, "stages": 0, "batchnorm": "auto"},
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
        "max_time_minutes": None,
        "checkpoint_every_minutes": 10.0,
        "ema_decay": 0.9,
        "compile": False,
    },
    "logger": None,
    "evidence": {
        "calibrate": True,
        "coverage": 0.95,
        "max_error": "auto",
        "min_sensitivity": 0.95,
        "min_specificity": 0.95,
        "resamples": 1000,
        "pictures": 12,
        "report": True,
        "gain": False,
    },
    "recipe": "auto",
    "task": "multiclass",
    "cache_folder": None,
    "seed": 0,
    "runs": "runs",
    "name": None,
    "resume": None,
    "debug": False,
}


@pytest.fixture(scope="session")
def changed() -> Callable[..., dict[str, Any]]:
    """Return the settings of a training with some changed; ``__`` stands for a dot."""

    def change(**values: Any) -> dict[str, Any]:
        settings = {k: dict(v) if isinstance(v, dict) else v for k, v in TRAIN.items()}
        for key, value in values.items():
            group, _, name = key.rpartition("__")
            (settings[group] if group else settings)[name] = value
        return settings

    return change


@pytest.fixture(scope="session")
def train_config(changed: Callable[..., dict[str, Any]]) -> Callable[..., TrainConfig]:
    """Validate the settings with some changed."""
    return lambda **values: validate(TrainConfig, changed(**values))


@pytest.fixture(scope="session")
def refusal(train_config: Callable[..., TrainConfig]) -> Callable[..., str]:
    """Return the message for settings that are refused."""

    def refuse(**values: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            train_config(**values)
        return str(caught.value)

    return refuse
