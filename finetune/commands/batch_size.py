"""``trainer.batch_size=find``: the sizes that fit into memory, and the smallest that is fast."""

import torch
from rich.console import Console

from finetune.commands.components import build_classifier, build_module, build_preprocess
from finetune.commands.recipe import fill_in, settle_recipe
from finetune.config import TrainConfig
from finetune.data.audit import Audit
from finetune.data.discover import ImageFolder
from finetune.errors import ConfigError, TrainingError
from finetune.training.batch_finder import (
    BatchSize,
    attempt_step,
    find_batch_size,
    largest_by_memory,
)
from finetune.training.hardware import Hardware
from finetune.training.recipe import Choice

SMALLEST = 8
LARGEST = 1024
STEPS_AN_EPOCH = 4
"""An epoch of fewer steps is none; so no larger share of the training images is tried."""


def put_batch_size(
    config: TrainConfig,
    folder: ImageFolder,
    audit: Audit | None,
    hardware: Hardware,
    console: Console,
) -> tuple[TrainConfig, dict[str, Choice]]:
    """Put the size that was found in place of ``find``; anything else stays as it is.

    Args:
        config: of the training; the rest of the recipe may still be ``auto``.
        folder: images with their splits.
        audit: as for the recipe.
        hardware: what it runs on.
        console: for what was tried.

    Returns:
        The config, and the choice by its dotted name, which the run is to remember; empty where
        nothing was to be found.

    Raises:
        ConfigError: several processes share a batch.
        TrainingError: not a single image fits.
    """
    if config.trainer.batch_size != "find":
        return config, {}
    check_batch_size_search(config, hardware)
    trial, _ = settle_recipe(config, folder, audit, hardware)
    classifier = build_classifier(trial, num_classes=len(folder.class_names), load_weights=False)
    preprocess = build_preprocess(trial, classifier)
    module = build_module(trial, classifier, preprocess, folder).to(hardware.device)
    dtype = None if hardware.dtype == torch.float32 else hardware.dtype
    attempt = attempt_step(module, preprocess.image_size_px, dtype=dtype)
    images = sum(sample.split == "train" for sample in folder.samples)
    most = max(1, min(LARGEST, images // STEPS_AN_EPOCH))
    if hardware.accelerator == "cpu":
        most = min(most, largest_by_memory(attempt) or most)
    found = find_batch_size(attempt, start=min(SMALLEST, most), largest=most)
    if found.suggestion is None:
        raise TrainingError(
            "trainer.batch_size: not a single image fits into memory. Try a smaller "
            "model.image_size_px or model."
        )
    console.print(_describe(found), markup=False, highlight=False, soft_wrap=True)
    choice = Choice(found.suggestion, f"found: within 5 % of the fastest; {found.largest} fit")
    return fill_in(config, {"trainer.batch_size": choice.value}), {"trainer.batch_size": choice}


def check_batch_size_search(config: TrainConfig, hardware: Hardware) -> None:
    """Refuse ``find`` where several processes share a batch.

    Raises:
        ConfigError: they do.
    """
    if config.trainer.batch_size == "find" and hardware.world_size > 1:
        raise ConfigError(
            "trainer.batch_size: got find, which looks at one device; find it with "
            "trainer.devices=1, then type it times the number of devices."
        )


def _describe(found: BatchSize) -> str:
    tried = ", ".join(
        f"{attempt.batch_size}: {attempt.images_per_second:.0f}/s"
        if attempt.images_per_second
        else f"{attempt.batch_size}: too many"
        for attempt in sorted(found.attempts, key=lambda attempt: attempt.batch_size)
    )
    return (
        f"Batch size: {found.suggestion}, the smallest within 5 % of the fastest ({tried}); "
        f"up to {found.largest} fit ({found.reason})."
    )
