"""From the config of a data set to labelled images with their splits; used by several verbs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.cache import find_cache
from finetune.commands.formulas import draw_formulas
from finetune.config import DatasetConfig, Task
from finetune.data.audit import Audit, audit_folder
from finetune.data.discover import ImageFolder, Sample, discover_folder
from finetune.data.listing import Skipped
from finetune.data.manifest import read_manifest
from finetune.data.public.digits import write_digits
from finetune.data.split_file import read_split
from finetune.data.splits import apply_split_file, assign_folds, assign_splits, group_by_pattern
from finetune.errors import ConfigError, DataError, RunError
from finetune.run import RunDirectory, read_record, typed
from finetune.training.hardware import count_cores

WORTH_WORKERS = 500
"""Images from which on starting processes costs less than it saves."""


@dataclass(frozen=True)
class Columns:
    """How tables are written; kept with a run, for those that it reads later.

    Attributes:
        path: column of a manifest.
        label: likewise.
        split: likewise; None takes ``split`` where there is one.
        group: likewise.
        separator: between the labels of one image, also in ``split.csv``; None where each image
            has exactly one.
    """

    path: str
    label: str
    split: str | None
    group: str | None
    separator: str | None


def columns_of(config: DatasetConfig, task: Task) -> Columns:
    """Take the columns from the config; one label per image has no separator."""
    return Columns(
        config.path_column,
        config.label_column,
        config.split_column,
        config.group_column,
        config.label_separator if task == "multilabel" else None,
    )


def columns_of_run(run: RunDirectory) -> Columns:
    """Read how a run's tables are written.

    Raises:
        RunError: its record is damaged.
    """
    try:
        return Columns(**read_record(run)["columns"])
    except (KeyError, TypeError):
        raise RunError(f"{run.record} does not name the columns of the run's tables.") from None


def data_name(config: DatasetConfig) -> str:
    """Name a data set in a word: the folder's, or the manifest's."""
    if config.name is not None:
        return config.name
    if config.manifest is not None:
        return config.manifest.stem
    return (config.root.resolve().name if config.root is not None else "") or "dataset"


def find_images(config: DatasetConfig, task: Task) -> ImageFolder:
    """List the images of a data set; the embedded one is written first where it is not there.

    Raises:
        ConfigError: neither a root nor a manifest is given, or one that the task cannot use.
        DataError: the folder or the manifest is no data set.
    """
    manifest, root = config.manifest, config.root
    if config.source == "formulas":
        manifest, root = draw_formulas(config, task), None
    if task == "multilabel" and manifest is None:
        raise ConfigError(
            "task: got multilabel, for which a folder has one class per image too few; give a "
            "table with the labels of each image: dataset.manifest=labels.csv."
        )
    if manifest is not None:
        folder = list_manifest(manifest, root, columns_of(config, task))
    else:
        folder = _list_folder(config)
    if config.group_pattern is not None:
        folder = replace(folder, samples=group_by_pattern(folder.samples, config.group_pattern))
    return replace(folder, root=folder.root.resolve())


def list_manifest(
    manifest: Path, root: Path | None, columns: Columns, *, min_classes: int = 2
) -> ImageFolder:
    """Read a manifest by the names of its columns.

    Raises:
        DataError: it cannot be read as such.
    """
    return read_manifest(
        manifest,
        root=root,
        path_column=columns.path,
        label_column=columns.label,
        split_column=columns.split,
        group_column=columns.group,
        label_separator=columns.separator,
        min_classes=min_classes,
    )


def _list_folder(config: DatasetConfig) -> ImageFolder:
    if config.root is None:
        raise ConfigError(
            "dataset.root: missing; give the folder of your images: dataset.root=PATH."
        )
    if config.source == "digits":
        write_digits(config.root)
    if config.download is not None and not config.root.exists():
        raise DataError(
            f"{config.root}: no such folder. Give your own images with dataset.root=PATH, or "
            f"fetch public ones: {typed('data', dataset='medical')}."
        )
    return discover_folder(config.root)


def audit_images(
    config: DatasetConfig, folder: ImageFolder, *, cache_folder: Path | None, console: Console
) -> Audit:
    """Examine every image that is new or changed since the last time, with progress."""
    columns = (
        TextColumn("Checking images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    workers = count_cores() if config.workers == "auto" else config.workers
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=len(folder.samples))
        return audit_folder(
            folder,
            workers=workers if len(folder.samples) >= WORTH_WORKERS else 0,
            max_megapixels=config.max_megapixels,
            min_side_px=config.min_side_px,
            accept=config.accept,
            expect_groups=config.expect_groups,
            cache=find_cache(cache_folder).audits,
            on_progress=lambda done: progress.update(task, completed=done),
        )


def split_images(
    config: DatasetConfig, folder: ImageFolder, audit: Audit, *, task: Task, seed: int
) -> ImageFolder:
    """Divide the readable images into train, val and test; copies and groups stay together.

    Args:
        config: how.
        folder: all images.
        audit: which of them cannot be read, and which are the same.
        task: with several labels per image, a split file separates them.
        seed: of the division.

    Raises:
        DataError: a class has no readable image to train on, or nothing is left to validate with.
    """
    readable = [sample for sample in folder.samples if sample.path not in audit.unreadable]
    if config.split_file is not None:
        rows = read_split(config.split_file, label_separator=columns_of(config, task).separator)
        known = [row for row in rows if row.path not in audit.unreadable]
        try:
            divided, others = apply_split_file(readable, known)
        except DataError as error:
            raise DataError(f"dataset.split_file={config.split_file}: {error}") from None
        left_out = [Skipped(path, "not in the split file") for path in others]
        folder = replace(folder, skipped=(*folder.skipped, *left_out))
    else:
        divided = _divide(config, readable, audit, seed)
    _check_division(folder, divided)
    return replace(folder, samples=tuple(divided))


def sets_of_copies(audit: Audit | None) -> list[tuple[str, ...]]:
    """Give the paths of each set of images that are the same, or look so."""
    return [*audit.duplicates, *audit.near_duplicates] if audit is not None else []


def paths_of(folder: ImageFolder, split: str) -> list[Path]:
    """List the files of one split."""
    return [folder.root / sample.path for sample in folder.samples if sample.split == split]


def shorter_side_px(audit: Audit | None) -> float | None:
    """Give the shorter side of the middle image; None where nothing is known."""
    if audit is None or audit.width_px is None or audit.height_px is None:
        return None
    return min(audit.width_px.median, audit.height_px.median)


def class_counts(folder: ImageFolder, split: str) -> dict[str, int]:
    """Count the images of each class in one split; an image of several labels counts for each."""
    counts = Counter(
        name for sample in folder.samples if sample.split == split for name in sample.labels
    )
    return {name: counts[name] for name in folder.class_names}


def _divide(
    config: DatasetConfig, samples: Sequence[Sample], audit: Audit, seed: int
) -> tuple[Sample, ...]:
    # A copy of a training image in validation would be an answer learned by heart.
    together = sets_of_copies(audit)
    if config.folds is not None:
        if config.fold == "all":
            raise ConfigError("dataset.fold: got all, which is several divisions, not one.")
        return assign_folds(
            samples,
            folds=config.folds,
            fold=config.fold,
            test_fraction=config.test_fraction,
            seed=seed,
            together=together,
        )
    return assign_splits(
        samples,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=seed,
        together=together,
    )


def _check_division(folder: ImageFolder, divided: Iterable[Sample]) -> None:
    in_train: Counter[str] = Counter()
    splits = set()
    for sample in divided:
        splits.add(sample.split)
        if sample.split == "train":
            in_train.update(sample.labels)
    empty = [name for name in folder.class_names if not in_train[name]]
    if empty:
        raise DataError(f'{folder.root}: class "{empty[0]}" has no readable image to train on.')
    if "val" not in splits:
        raise DataError(
            f"{folder.root}: no image is left to validate with; every class has a single image, "
            "or one group. Add images."
        )
