"""A frozen prefix that sees the same images in every epoch is computed once."""

import time
from functools import partial
from typing import cast

import torch
from rich.progress import Progress
from torch import Tensor

from finetune.cache import find_cache, open_cache_folder
from finetune.commands.recipe import transforms_of
from finetune.commands.setup import Setup
from finetune.config import TrainConfig, settled
from finetune.data.datamodule import ImageDataModule
from finetune.data.labelled_images import LabelledImages
from finetune.models.prefix import NoSplit, Split, split_backbone
from finetune.training.activations import (
    Activations,
    activation_bytes,
    compute_activations,
    stack_activations,
)
from finetune.training.hardware import Hardware, choose_workers
from finetune.training.module import FineTuning


def skip_frozen_prefix(setup: Setup) -> ImageDataModule:
    """Train on the activations behind the frozen stages, where they never change.

    That needs stages that stay frozen, images that are not augmented, one process, room on the
    disk of the cache (``dataset.cache_gb``), and a backbone that can be cut there. Where only the
    last of these is missing, it is said why; the training then is the usual one.

    Returns:
        What the steps are to be given: activations, or the images.
    """
    config, module, data, console = setup.config, setup.module, setup.data, setup.console
    num_frozen = frozen_stages(module)
    if not num_frozen or not sees_the_same(config) or setup.hardware.world_size > 1:
        return data
    images, _ = next(iter(data.resized_train_dataloader()))
    module.to(setup.hardware.device)
    example = module.normalise(images[:2].to(setup.hardware.device))
    split = split_backbone(module.classifier.backbone, module.stages, num_frozen, example=example)
    if isinstance(split, NoSplit):
        console.print(f"The frozen stages run in every step, since {split.reason}.", markup=False)
        return data
    needed = _bytes_needed(split, example, data, setup.hardware)
    if needed > config.dataset.cache_gb * 1e9:
        console.print(
            f"The frozen stages run in every step: what they say of all images takes "
            f"{needed / 1e9:.1f} GB, more than dataset.cache_gb={config.dataset.cache_gb:g}.",
            markup=False,
        )
        return data
    began = time.monotonic()
    compute = partial(_compute, setup, split)
    train, val = compute(data.train, "training"), compute(data.val, "validation")
    module.start_at(split.suffix)
    console.print(
        f"Frozen stages: computed once for {len(train) + len(val):,} images in "
        f"{time.monotonic() - began:.1f} s ({needed / 1e6:,.0f} MB on disk); the steps run on the "
        "rest.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    # They take the same keys as images, and a loader asks for no more.
    return ImageDataModule(
        cast(LabelledImages, train),
        cast(LabelledImages, val),
        batch_size=data.batch_size,
        workers=0,
        seed=data.seed,
        is_balanced=data.is_balanced,
        collate=stack_activations,
    )


def frozen_stages(module: FineTuning) -> int:
    """Count the stages that never learn in this training."""
    if module.freezing.policy == "backbone":
        return len(module.stages)
    return module.freezing.stages


def sees_the_same(config: TrainConfig) -> bool:
    """Tell whether every epoch shows the same images."""
    augmentation = config.augmentation
    is_random = (
        augmentation.random_erasing > 0
        or settled(augmentation.mixup_alpha) > 0
        or augmentation.cutmix_alpha > 0
    )
    return not is_random and augmentation.transforms == transforms_of("none")


def _bytes_needed(split: Split, example: Tensor, data: ImageDataModule, hardware: Hardware) -> int:
    split.prefix.eval()  # in train mode, the statistics of its BatchNorm would move
    with torch.inference_mode(), _autocast(hardware):
        output = split.prefix(example)
    return activation_bytes(output, len(data.train) + len(data.val))


def _autocast(hardware: Hardware) -> torch.autocast:
    dtype = hardware.dtype
    return torch.autocast(hardware.device.type, dtype, enabled=dtype != torch.float32)


def _compute(setup: Setup, split: Split, images: LabelledImages, what: str) -> Activations:
    config, console = setup.config, setup.console
    folder = open_cache_folder(find_cache(config.cache_folder).features)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"Frozen stages, {what} images", total=len(images))
        return compute_activations(
            split.prefix,
            images,
            normalise=setup.module.normalise,
            device=setup.hardware.device,
            dtype=setup.hardware.dtype,
            batch_size=settled(config.trainer.batch_size),
            workers=choose_workers(config.dataset.workers),
            folder=folder,
            on_progress=lambda done: progress.update(task, completed=done),
        )
