"""``recipe=auto``: every setting that is ``auto``, chosen by images, backbone and machine."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel

from finetune.commands.dataset import shorter_side_px
from finetune.config import InspectConfig, TrainConfig
from finetune.data.audit import Audit
from finetune.data.discover import ImageFolder
from finetune.errors import ConfigError, RunError
from finetune.models.backbones import NANO, pretrained_size_px
from finetune.training.hardware import Hardware
from finetune.training.recipe import (
    Choice,
    Facts,
    choose_augmentation,
    choose_image_size,
    choose_recipe,
)
from finetune.usage import CONF, group_options
from finetune.validation import validate

Config = TypeVar("Config", bound=BaseModel)

OPEN = ("auto", "find")
"""What a recipe puts values for; `finetune.commands.rates` then finds those of ``find``."""


def settle_recipe(
    config: TrainConfig,
    folder: ImageFolder,
    audit: Audit | None,
    hardware: Hardware,
    *,
    decided: Mapping[str, Any] | None = None,
) -> tuple[TrainConfig, dict[str, Choice]]:
    """Put a value for each ``auto`` that a recipe can choose.

    Args:
        config: of the training.
        folder: images with their splits.
        audit: knows how large they are; None where it is not known.
        hardware: what it runs on.
        decided: what a run that goes on has chosen when it began; None to choose.

    Returns:
        The config without ``auto``, and each choice by its dotted name.

    Raises:
        RunError: what was decided does not settle this config; the run's record is damaged.
    """
    if decided is not None:
        _, now = settle_recipe(config, folder, audit, hardware)
        choices = {key: Choice(value, "as the run began") for key, value in decided.items()}
        return _as_begun(config, decided, open_keys=set(now)), choices
    choices = {}
    has_weights = is_pretrained(config)
    if config.freeze.policy == "probe_then_finetune" and not has_weights:
        choices["freeze.policy"] = Choice("none", "random weights give no features to probe")
        config = fill_in(config, {"freeze.policy": "none"})
    trainer = config.trainer
    facts = Facts(
        num_images=sum(sample.split == "train" for sample in folder.samples),
        shorter_side_px=shorter_side_px(audit),
        native_size_px=pretrained_size_px(config.model.backbone),
        is_pretrained=has_weights,
        is_embedded=is_embedded(config),
        starts_from_probe=starts_from_probe(config),
        policy=config.freeze.policy,
        world_size=hardware.world_size,
        batch_size=_typed(trainer.batch_size),
        epochs=_typed(trainer.epochs),
    )
    open_keys = {
        key: choice for key, choice in choose_recipe(facts).items() if _value(config, key) in OPEN
    }
    choices |= open_keys
    return fill_in(config, {key: choice.value for key, choice in choices.items()}), choices


def _as_begun(
    config: TrainConfig, decided: Mapping[str, Any], *, open_keys: AbstractSet[str]
) -> TrainConfig:
    """Put in what a record says, which may be another's: as if it had been typed."""
    lacking = sorted(open_keys - set(decided))
    unknown = sorted(key for key in decided if not _is_setting(config, key))
    option = decided.get("augmentation.transforms", "none")
    try:
        if lacking or unknown:
            reason = "no such key" if unknown else "missing"
            raise ConfigError(f"{(unknown or lacking)[0]}: {reason}.")
        if option not in group_options("augmentation"):
            raise ConfigError(f"augmentation.transforms: got {option!r}, which is no option.")
        return validate(TrainConfig, fill_in(config, decided).model_dump(warnings=False))
    except ConfigError as error:
        raise RunError(
            f"resume: the recipe in the run's record is damaged: {str(error)[:200]} Start anew."
        ) from None


def _is_setting(config: BaseModel, key: str) -> bool:
    group, _, name = key.partition(".")
    inner = getattr(config, group, None) if group in type(config).model_fields else None
    return isinstance(inner, BaseModel) and name in type(inner).model_fields


def settle_inspected(config: InspectConfig, folder: ImageFolder, audit: Audit) -> InspectConfig:
    """Put a value for each ``auto`` that a picture of what a training sees depends on."""
    num_images = sum(sample.split == "train" for sample in folder.samples)
    size = choose_image_size(
        shorter_side_px(audit),
        native_size_px=pretrained_size_px(config.model.backbone),
        expects_it=expects_its_size(config),
    )
    choices = {
        "augmentation.transforms": choose_augmentation(num_images),
        "model.image_size_px": size,
    }
    return fill_in(
        config, {k: choice.value for k, choice in choices.items() if _value(config, k) in OPEN}
    )


def is_pretrained(config: TrainConfig | InspectConfig) -> bool:
    """Tell whether the backbone brings weights."""
    return config.model.pretrained or config.model.weights is not None


def is_embedded(config: TrainConfig | InspectConfig) -> bool:
    """Tell whether the weights are those that are part of this package."""
    model = config.model
    return model.backbone == NANO and model.pretrained and model.weights is None


def expects_its_size(config: TrainConfig | InspectConfig) -> bool:
    """Tell whether the backbone does best with images of the size that it was pretrained on."""
    return is_pretrained(config) and not is_embedded(config)


def starts_from_probe(config: TrainConfig) -> bool:
    """Tell whether the head is fitted on features; only a linear one can be."""
    return (
        config.freeze.policy in ("probe_then_finetune", "backbone") and config.head.name == "linear"
    )


def needs_steps(config: TrainConfig) -> bool:
    """Tell whether anything is left to learn after the probe."""
    return not (config.freeze.policy == "backbone" and starts_from_probe(config))


def fill_in(config: Config, values: Mapping[str, Any]) -> Config:
    """Put values in place of others, by dotted name; the name of an augmentation is spelled out."""
    for key, value in values.items():
        group, _, name = key.partition(".")
        put = transforms_of(value) if key == "augmentation.transforms" else value
        inner = getattr(config, group).model_copy(update={name: put})
        config = config.model_copy(update={group: inner})
    return config


def _value(config: BaseModel, key: str) -> Any:
    """Give the value of a dotted name; None where the chosen option has no such key."""
    group, _, name = key.partition(".")
    return getattr(getattr(config, group), name, None)


def _typed(value: int | Literal["auto", "find"]) -> int | None:
    return value if isinstance(value, int) else None


def transforms_of(option: str) -> list[dict[str, Any]]:
    """Read the transforms of one of our own options of ``augmentation``."""
    text = (CONF / "augmentation" / f"{option}.yaml").read_text(encoding="utf-8")
    transforms: list[dict[str, Any]] = yaml.safe_load(text)["transforms"]
    return transforms
