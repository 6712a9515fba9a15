"""The images of a training: found, audited and divided, or as the run began with them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from finetune.commands.dataset import audit_images, columns_of, find_images, split_images
from finetune.commands.settle import settle
from finetune.config import DatasetConfig, TrainConfig
from finetune.data.audit import Audit, check_findings, not_audited
from finetune.data.discover import ImageFolder, Sample
from finetune.data.split_file import read_split
from finetune.data.stamps import Stamp, Stamps, read_stamps, write_stamps
from finetune.errors import DataError, RunError
from finetune.run import RunDirectory, read_record, replacing

RUN_VARIABLE = "FINETUNE_RUN"
"""Tells the processes that DDP starts on this machine where the run directory is."""
STAMPS = "images.csv"
"""In the run directory: path, size, time and SHA-256 of every image that the run began with."""


@dataclass(frozen=True)
class Images:
    """The images of a training.

    Attributes:
        folder: with their splits.
        audit: None where nothing asks for it.
        stamps: what each file was like when the run began, by path; None in a run that did not
            write it down.
    """

    folder: ImageFolder
    audit: Audit | None
    stamps: Mapping[str, Stamp] | None


@dataclass(frozen=True)
class Division:
    """A division of images that nobody has opened yet.

    Attributes:
        folder: the images with their splits.
        is_final: the splits are given, so that opening the images can only take some away;
            otherwise copies will be put on one side.
    """

    folder: ImageFolder
    is_final: bool


def images_of(
    config: TrainConfig,
    console: Console,
    *,
    is_main: bool,
    looks_ahead: bool,
    check: Callable[[Division], None] | None = None,
) -> Images:
    """Find, audit and divide the images, or take those that the run began with.

    Args:
        config: of the training.
        console: for the progress of the audit.
        is_main: whether this is the process that writes.
        looks_ahead: what will stop a later fold stops the first one.
        check: refuses what can be refused before any image of a new run is opened.

    Raises:
        DataError: something is wrong with the images.
        RunError: they are not those that the run began with.
    """
    dataset = config.dataset
    audit_of = partial(audit_images, dataset, cache_folder=config.cache_folder, console=console)
    known = config.resume if config.resume is not None else parent_run(is_main=is_main)
    if known is not None:
        separator = columns_of(dataset, config.task).separator
        folder, stamps = _images_of_run(RunDirectory(known), separator)
        return Images(folder, None if dataset.cache == "none" else audit_of(folder), stamps)
    folder = find_images(dataset, config.task)
    divide = partial(split_images, folder=folder, task=config.task, seed=config.seed)
    further = range(1, dataset.folds or 0) if looks_ahead and dataset.fold == 0 else ()
    later = [dataset.model_copy(update={"fold": fold}) for fold in further]
    if check is not None:
        check(Division(divide(dataset, audit=not_audited(folder)), _is_given(dataset, folder)))
    audit = audit_of(folder)
    check_findings(audit)
    for each in later:
        settle(config, divide(each, audit=audit))
    return Images(divide(dataset, audit=audit), audit, audit.stamps)


def keep_stamps(run: RunDirectory, folder: ImageFolder, stamps: Mapping[str, Stamp]) -> None:
    """Write down what the images of a run are like as it begins."""
    known = {s.path: stamps[s.path] for s in folder.samples if s.path in stamps}
    with replacing(run.path / STAMPS) as temporary:
        write_stamps(temporary, known)


def _is_given(dataset: DatasetConfig, folder: ImageFolder) -> bool:
    has_val = any(sample.split == "val" for sample in folder.samples)
    return dataset.split_file is not None or (has_val and dataset.folds is None)


def _images_of_run(
    run: RunDirectory, separator: str | None
) -> tuple[ImageFolder, Mapping[str, Stamp] | None]:
    """Return the images that a run began with, whatever has come to their folder since.

    Raises:
        RunError: some are gone or have changed, or the run's record is not whole.
    """
    record = read_record(run)
    missing = [key for key in ("class_names", "recipe") if key not in record]
    if missing:
        raise RunError(
            f"resume: {run.record} has no {' and no '.join(missing)}; it is damaged, or of another "
            "version. Start anew."
        )
    root, rows = Path(record["data"]), read_split(run.split, label_separator=separator)
    strange = {name for row in rows for name in row.labels} - set(record["class_names"])
    if strange:
        raise RunError(
            f"resume: {run.split} has the class `{min(strange)}`, which {run.record.name} does not "
            "know; one of them is damaged. Start anew."
        )
    gone = [row.path for row in rows if not (root / row.path).is_file()]
    if gone:
        raise RunError(
            f"resume: {len(gone)} of the {len(rows)} images that the run began with are gone from "
            f"{root}; the first: `{gone[0]}`. Put them back, or start anew."
        )
    stamps = _stamps_of_run(run, root, rows)
    return ImageFolder(root, tuple(record["class_names"]), tuple(rows), ()), stamps


def _stamps_of_run(
    run: RunDirectory, root: Path, samples: Sequence[Sample]
) -> Mapping[str, Stamp] | None:
    """Compare the images with what they were like; only those that look changed are read.

    Returns:
        Their stamps, with the times of now; None in a run of an earlier version.

    Raises:
        RunError: some have changed, or the file is damaged.
    """
    path = run.path / STAMPS
    if not path.exists():
        return None
    try:
        known = read_stamps(path)
    except DataError as error:
        raise RunError(f"resume: {error} The file is damaged. Start anew.") from None
    lacking = [sample.path for sample in samples if sample.path not in known]
    if lacking:
        raise RunError(f"resume: {path} lacks `{lacking[0]}`; it is damaged. Start anew.")
    stamps = Stamps([known[sample.path] for sample in samples])
    try:
        changed = [
            sample.path
            for index, sample in enumerate(samples)
            if stamps.has_changed(index, root / sample.path)
        ]
    except OSError as error:
        raise RunError(f"resume: {error.filename} cannot be read: {error.strerror}.") from None
    if changed:
        have = "has" if len(changed) == 1 else "have"
        raise RunError(
            f"resume: {len(changed)} of the {len(samples)} images that the run began with {have} "
            f"changed in {root}; the first: `{changed[0]}`. Put the old files back, or start anew."
        )
    return {sample.path: stamps[index] for index, sample in enumerate(samples)}


def parent_run(*, is_main: bool) -> Path | None:
    """Name the run directory of the process that started this one; None in the main process."""
    path = os.environ.get(RUN_VARIABLE)
    return Path(path) if path and not is_main else None
