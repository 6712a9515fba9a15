"""What is refused before an image is opened or a weight is loaded; the cheapest comes first."""

import shutil
from pathlib import Path

import torch
from torch import nn

from finetune.cache import find_cache, open_cache_folder
from finetune.commands.batch_size import check_batch_size_search
from finetune.commands.components import head_arguments
from finetune.commands.dataset import data_name
from finetune.commands.images import Division
from finetune.commands.recipe import expects_its_size, needs_steps
from finetune.commands.settle import settle
from finetune.config import TrainConfig
from finetune.data.augment import Augmentation, check_transforms
from finetune.errors import ConfigError, RunError
from finetune.models.backbones import describe_backbone, outline_backbone, pretrained_size_px
from finetune.models.freezing import (
    Freezing,
    backbone_stages,
    batchnorm_parameters,
    check_freezing,
)
from finetune.models.heads import create_head
from finetune.training.hardware import Hardware
from finetune.training.loggers import check_logger
from finetune.training.optim import check_optimizer, create_optimizer
from finetune.training.trainer import compiled_network

_NUMBER_BYTES = 4
"""Of a float32: weights are trained, averaged and kept in full precision."""


def check_settings(config: TrainConfig, hardware: Hardware) -> nn.Module:
    """Refuse settings that cannot work with any images; nothing large is read.

    Args:
        config: of the training; what is ``auto`` is not looked at.
        hardware: what it runs on.

    Returns:
        The backbone without values, for `check_disk_space`.

    Raises:
        FinetuneError: what is wrong, for the user.
    """
    check_optimizer(config.optimizer.name)
    _check_finding(config, hardware)
    check_batch_size(config, hardware)
    if config.logger is not None:
        check_logger(config.logger.name)
    if config.dataset.cache == "disk":
        open_cache_folder(find_cache(config.cache_folder).images)
    backbone = _outline(config)
    check_freezing(
        backbone,
        backbone_stages(backbone),
        Freezing(config.freeze.policy, stages=config.freeze.stages),
    )
    _check_augmentation(config)
    if config.trainer.compile:
        with compiled_network(backbone):
            pass
    return backbone


def check_division(config: TrainConfig, hardware: Hardware, division: Division) -> None:
    """Refuse what the images' names, labels and splits show, whatever is in the files.

    Args:
        config: of the training; what is ``auto`` is not looked at.
        hardware: what it runs on.
        division: of the images that are there.

    Raises:
        ConfigError: what cannot be asked of so few images, or of this validation.
    """
    settle(config, division.folder, is_divided=division.is_final)
    samples = division.folder.samples
    if division.is_final:
        train = sum(sample.split == "train" for sample in samples)
        val = sum(sample.split == "val" for sample in samples)
    else:  # copies may come together, but neither side is left without an image
        train = val = sum(sample.split != "test" for sample in samples) - 1
    check_counts(config, hardware, train=train, val=val, is_final=division.is_final)


def check_counts(
    config: TrainConfig, hardware: Hardware, *, train: int, val: int, is_final: bool = True
) -> None:
    """Refuse a batch that the images cannot fill, or processes that they cannot all serve.

    Args:
        config: of the training.
        hardware: what it runs on.
        train: images to train on.
        val: images to validate with.
        is_final: whether these are the numbers, or none can be larger.

    Raises:
        ConfigError: which of these, and what would do.
    """
    size, world_size = config.trainer.batch_size, hardware.world_size
    there_are = "there are" if is_final else "there are at most"
    if val < world_size:
        raise ConfigError(
            f"trainer.devices: got {world_size} processes, but {there_are} {val} images to "
            f"validate on; use at most {val}."
        )
    if isinstance(size, int) and size > train:
        raise ConfigError(
            f"trainer.batch_size: got {size}, but {there_are} {train} images to train on; "
            f"use at most {train}."
        )


def check_batch_size(config: TrainConfig, hardware: Hardware) -> None:
    """Refuse a batch that cannot be divided among processes, or normalised over.

    Raises:
        ConfigError: which of these, and what would do.
    """
    size, world_size = config.trainer.batch_size, hardware.world_size
    if not isinstance(size, int):
        return
    if size % world_size:
        raise ConfigError(
            f"trainer.batch_size: got {size}, expected a multiple of the {world_size} processes, "
            f"such as {(size // world_size + 1) * world_size}."
        )
    if size == world_size and config.freeze.batchnorm == "train":
        raise ConfigError(
            f"trainer.batch_size: got {size}, one image for each process; BatchNorm needs at "
            f"least two, {2 * world_size}, or freeze.batchnorm=frozen."
        )


def check_disk_space(
    config: TrainConfig, backbone: nn.Module, *, num_classes: int, trainings: int = 1
) -> None:
    """Refuse a training whose checkpoints will not fit on the disk of its folder.

    ``best`` and ``last`` stay, and the next of either is written beside them.

    Args:
        config: of the training.
        backbone: with or without values.
        num_classes: of the data.
        trainings: such as it, one after the other: the folds that are left.

    Raises:
        RunError: what is needed, and what is free.
    """
    each = checkpoint_bytes(config, backbone, num_classes=num_classes)
    files = 2 * trainings + 1
    free = _free_bytes(config.runs / data_name(config.dataset))
    if files * each > free:
        raise RunError(
            f"runs={config.runs}: the checkpoints need {_in_words(files * each)} ({files} files of "
            f"{_in_words(each)}), but its disk has {_in_words(free)} free. Make room there, or "
            "choose a folder on another disk: runs=FOLDER."
        )


def checkpoint_bytes(config: TrainConfig, backbone: nn.Module, *, num_classes: int) -> int:
    """Estimate the size of a checkpoint: weights, their moving average, the optimizer's state.

    Args:
        config: of the training; an average that is ``auto`` is kept.
        backbone: with or without values.
        num_classes: of the data.
    """
    with torch.device("meta"):
        head = create_head(
            config.head.name,
            in_features=describe_backbone(backbone).num_features,
            num_classes=num_classes,
            **head_arguments(config),
        )
    weights: int = sum(
        tensor.numel() * tensor.element_size()
        for network in (backbone, head)
        for tensor in network.state_dict().values()
    )
    if not needs_steps(config):
        return weights
    learning = sum(parameter.numel() for parameter in head.parameters())
    learning += sum(backbone.get_parameter(name).numel() for name in _learning(config, backbone))
    state = round(learning * _NUMBER_BYTES * _state_per_weight(config))
    return weights * (2 if config.trainer.ema_decay != 0 else 1) + state


def _learning(config: TrainConfig, backbone: nn.Module) -> list[str]:
    """Name the backbone's parameters that an optimizer gets."""
    policy = config.freeze.policy
    if policy == "backbone":
        return []
    stages = backbone_stages(backbone)[config.freeze.stages :]
    names = [name for stage in stages for name in stage.parameter_names]
    if policy != "batchnorm_only":
        return names
    norms = batchnorm_parameters(backbone)
    return [name for name in names if name in norms]


def _state_per_weight(config: TrainConfig) -> float:
    """Find out how many numbers the optimizer keeps for each weight, by one step of a small layer.

    Returns:
        2 for Adam's kind; 0 where that cannot be found out.
    """
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones_like(weight)
    try:
        optimizer = create_optimizer(
            config.optimizer.name,
            [{"params": [weight], "weight_decay": 0.0}],
            lr=1e-3,
            momentum=config.optimizer.momentum,
        )
        optimizer.step()
    except Exception:  # noqa: BLE001 - some want a GPU, or more than one step; they shall have it
        return 0.0
    state = optimizer.state_dict()["state"].values()
    tensors = [value for values in state for value in values.values() if torch.is_tensor(value)]
    return sum(tensor.numel() for tensor in tensors) / weight.numel()


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _outline(config: TrainConfig) -> nn.Module:
    """Build the backbone without values; whatever its weights and its size can be refused for, is.

    A run that goes on has its weights in a checkpoint.
    """
    model, begins = config.model, config.resume is None
    size = model.image_size_px
    return outline_backbone(
        model.backbone,
        pretrained=model.pretrained and model.weights is None and begins,
        weights=model.weights if begins else None,
        image_size_px=size if isinstance(size, int) else None,
    )


def _check_augmentation(config: TrainConfig) -> None:
    augmentation, size = config.augmentation, config.model.image_size_px
    if augmentation.transforms == "auto":
        return
    if size == "auto" and not expects_its_size(config):  # the images will decide
        check_transforms(augmentation.transforms)
        return
    size_px = size if isinstance(size, int) else pretrained_size_px(config.model.backbone)
    Augmentation(augmentation.transforms, size_px, random_erasing=augmentation.random_erasing)


def _check_finding(config: TrainConfig, hardware: Hardware) -> None:
    """Refuse to look for a rate where several processes would each find their own.

    Raises:
        ConfigError: that is asked for.
    """
    check_batch_size_search(config, hardware)
    for key, value in (("optimizer.lr", config.optimizer.lr), ("recipe", config.recipe)):
        if value in ("find", "search") and hardware.world_size > 1:
            raise ConfigError(
                f"{key}: got {value}, which runs in one process; find the rate with "
                "trainer.devices=1, then type it: optimizer.lr=RATE."
            )
