"""From config to the images as a network sees them; used by ``train`` and ``inspect``."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from finetune.cache import find_cache
from finetune.config import InspectConfig, TrainConfig, settled
from finetune.data.audit import Audit
from finetune.data.augment import Augmentation
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import ImageFolder
from finetune.data.image_cache import ImageCache, open_image_cache, reduce_image
from finetune.data.labelled_images import (
    Augmented,
    LabelledImages,
    Resized,
    Rounded,
    Unchanged,
    make_targets,
)
from finetune.data.preprocess import Preprocess
from finetune.data.stamps import Stamp, Stamps
from finetune.training.hardware import Hardware, choose_workers

SIDE_FACTOR = 2
"""Large photographs are decoded, and kept, with a shorter side of the image size times this: an
augmentation that cuts out a quarter of the area still finds every pixel that it needs."""


def build_data(
    config: TrainConfig,
    folder: ImageFolder,
    audit: Audit | None,
    preprocess: Preprocess,
    hardware: Hardware,
    *,
    stamps: Mapping[str, Stamp] | None = None,
) -> ImageDataModule:
    """Make the loaders of training and validation.

    Args:
        config: of the training, settled.
        folder: images with their splits.
        audit: knows the digests by which a cache is keyed; None for no cache.
        preprocess: of the model.
        hardware: what it runs on.
        stamps: of the images when the run began, by path; what has changed since is refused. None
            lets anything pass.
    """
    dataset, size_px = config.dataset, preprocess.image_size_px
    for_train = for_val = None
    if dataset.cache != "none" and audit is not None:
        # In memory, each process of this machine has its own.
        processes = hardware.devices if dataset.cache == "ram" else 1
        total = int(dataset.cache_gb * 1e9) // processes
        val_bytes = min(total // 2, 4 * size_px**2 * len(folder.samples))  # 3 channels, and room
        open_cache = partial(_open_cache, config, folder, audit)
        settings = repr(sorted(preprocess.settings().items()))
        for_train = open_cache(f"shorter side {SIDE_FACTOR * size_px}", total - val_bytes)
        for_val = open_cache(settings, val_bytes)
    resized = partial(
        _build_resized_images, config, folder, preprocess=preprocess, cache=for_val, stamps=stamps
    )
    return ImageDataModule(
        build_train_images(config, folder, preprocess, cache=for_train, stamps=stamps),
        resized("val"),
        resized_train=resized("train"),
        batch_size=settled(config.trainer.batch_size),
        workers=choose_workers(dataset.workers, processes=hardware.devices),
        seed=config.seed,
        is_balanced=dataset.balance == "sampler",
    )


def build_train_images(
    config: TrainConfig | InspectConfig,
    folder: ImageFolder,
    preprocess: Preprocess,
    *,
    cache: ImageCache | None = None,
    stamps: Mapping[str, Stamp] | None = None,
) -> LabelledImages:
    """Make the training images, augmented."""
    side_px = SIDE_FACTOR * preprocess.image_size_px
    transforms = config.augmentation.transforms
    if transforms == "auto":
        raise ValueError("augmentation.transforms: got auto; settle the config first")
    augmentation = Augmentation(
        transforms,
        preprocess.image_size_px,
        random_erasing=config.augmentation.random_erasing,
    )
    return _build_images(
        config,
        folder,
        "train",
        prepare=None if cache is None else partial(reduce_image, side_px=side_px),
        transform=Augmented(augmentation),
        cache=cache,
        min_side_px=side_px,
        stamps=stamps,
    )


def _build_resized_images(
    config: TrainConfig,
    folder: ImageFolder,
    split: str,
    *,
    preprocess: Preprocess,
    cache: ImageCache | None,
    stamps: Mapping[str, Stamp] | None,
) -> LabelledImages:
    return _build_images(
        config,
        folder,
        split,
        prepare=None if cache is None else Rounded(preprocess),
        transform=Resized(preprocess) if cache is None else Unchanged(),
        cache=cache,
        stamps=stamps,
    )


def _build_images(
    config: TrainConfig | InspectConfig,
    folder: ImageFolder,
    split: str,
    *,
    stamps: Mapping[str, Stamp] | None,
    **settings: Any,
) -> LabelledImages:
    slots = [i for i, sample in enumerate(folder.samples) if sample.split == split]
    samples = [folder.samples[slot] for slot in slots]
    return LabelledImages(
        folder.root,
        samples,
        make_targets(samples, folder.class_names, is_multilabel=config.task == "multilabel"),
        seed=config.seed,
        max_megapixels=config.dataset.max_megapixels,
        slots=slots,
        stamps=None if stamps is None else Stamps([stamps.get(s.path) for s in samples]),
        **settings,
    )


def _open_cache(
    config: TrainConfig, folder: ImageFolder, audit: Audit, policy: str, max_bytes: int
) -> ImageCache:
    """Open a cache for all images of the data set, empty or as an earlier run left it.

    One for all splits: with folds, an image is trained on and validated with in turn.
    """
    assert config.dataset.cache != "none"  # noqa: S101 - for mypy; the caller has looked
    return open_image_cache(
        config.dataset.cache,
        find_cache(config.cache_folder).images,
        name=f"{folder.root}\0{policy}",
        # What cannot be read any more has no digest, and stops the training when it is read.
        keys=[bytes.fromhex(audit.digests.get(s.path, "00" * 32)) for s in folder.samples],
        max_bytes=max_bytes,
    )
