"""From the config of a data set to labelled images with their splits; used by several verbs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.config import DatasetConfig
from finetune.data.audit import Audit, audit_folder
from finetune.data.digits import write_digits
from finetune.data.discover import ImageFolder, discover_folder
from finetune.data.splits import assign_splits
from finetune.errors import ConfigError, DataError
from finetune.training.hardware import choose_workers

WORTH_WORKERS = 500
"""Images from which on starting processes costs less than it saves."""


def find_images(config: DatasetConfig) -> ImageFolder:
    """List the images of a data set; the embedded one is written first where it is not there.

    Raises:
        ConfigError: no root is given.
        DataError: the folder is no data set.
    """
    if config.root is None:
        raise ConfigError(
            "dataset.root: missing; give the folder of your images: dataset.root=PATH."
        )
    if config.source == "digits":
        write_digits(config.root)
    folder = discover_folder(config.root)
    return replace(folder, root=folder.root.resolve())


def audit_images(config: DatasetConfig, folder: ImageFolder, *, console: Console) -> Audit:
    """Decode every image once, with progress."""
    columns = (
        TextColumn("Checking images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    workers = choose_workers(config.workers)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(folder.samples))
        return audit_folder(
            folder,
            workers=workers if len(folder.samples) >= WORTH_WORKERS else 0,
            max_megapixels=config.max_megapixels,
            on_progress=lambda done: progress.update(task, completed=done),
        )


def split_images(
    config: DatasetConfig, folder: ImageFolder, audit: Audit, *, seed: int
) -> ImageFolder:
    """Divide the readable images into train, val and test; equal files stay together.

    Args:
        config: the fractions.
        folder: all images.
        audit: which of them cannot be read, and which are the same.
        seed: of the division.

    Raises:
        DataError: a class has no readable image to train on, or nothing is left to validate with.
    """
    samples = [sample for sample in folder.samples if sample.path not in audit.unreadable]
    # A copy of a training image in validation would be an answer learned by heart. Where the
    # folder itself has such copies, the audit says so, and the splits stay as they came.
    can_move = {sample.path for sample in samples if sample.split != "test"}
    copies = [[path for path in paths if path in can_move] for paths in audit.duplicates]
    divided = assign_splits(
        samples,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=seed,
        groups=(
            {path: paths[0] for paths in copies for path in paths}
            if not any(sample.split == "val" for sample in samples)
            else None
        ),
    )
    in_train = Counter(sample.class_name for sample in divided if sample.split == "train")
    empty = [name for name in folder.class_names if not in_train[name]]
    if empty:
        raise DataError(f'{folder.root}: class "{empty[0]}" has no readable image to train on.')
    if not any(sample.split == "val" for sample in divided):
        raise DataError(
            f"{folder.root}: no image is left to validate with; every class has a single image. "
            "Add images."
        )
    return replace(folder, samples=tuple(divided))


def paths_of(folder: ImageFolder, split: str) -> list[Path]:
    """List the files of one split."""
    return [folder.root / sample.path for sample in folder.samples if sample.split == split]
