"""The images of a training: found, audited and divided, or as the run began with them."""

import os
from functools import partial
from pathlib import Path

from rich.console import Console

from finetune.commands.dataset import audit_images, columns_of, find_images, split_images
from finetune.commands.settle import settle
from finetune.config import TrainConfig
from finetune.data.audit import Audit, check_findings
from finetune.data.discover import ImageFolder
from finetune.data.split_file import read_split
from finetune.errors import RunError
from finetune.run import RunDirectory, read_record

RUN_VARIABLE = "FINETUNE_RUN"
"""Tells the processes that DDP starts on this machine where the run directory is."""


def images_of(
    config: TrainConfig, console: Console, *, is_main: bool, looks_ahead: bool
) -> tuple[ImageFolder, Audit | None]:
    """Return the images with their splits, and the audit unless nothing asks for it.

    With ``looks_ahead``, what will stop a later fold stops the first one.
    """
    dataset = config.dataset
    audit_of = partial(audit_images, dataset, cache_folder=config.cache_folder, console=console)
    known = config.resume if config.resume is not None else parent_run(is_main=is_main)
    if known is not None:
        folder = _images_of_run(RunDirectory(known), columns_of(dataset, config.task).separator)
        return folder, None if dataset.cache == "none" else audit_of(folder)
    folder = find_images(dataset, config.task)
    audit = audit_of(folder)
    check_findings(audit)
    divide = partial(split_images, folder=folder, audit=audit, task=config.task, seed=config.seed)
    for fold in range(1, dataset.folds or 0) if looks_ahead and dataset.fold == 0 else ():
        settle(config, divide(dataset.model_copy(update={"fold": fold})))
    return divide(dataset), audit


def _images_of_run(run: RunDirectory, separator: str | None) -> ImageFolder:
    """Return the images that a run began with, whatever has come to their folder since.

    Raises:
        RunError: some are not there any more, or the run's record is not whole.
    """
    record = read_record(run)
    missing = [key for key in ("class_names", "recipe") if key not in record]
    if missing:
        raise RunError(
            f"resume: {run.record} has no {' and no '.join(missing)}; it is damaged, or of another "
            "version. Start anew."
        )
    root, rows = Path(record["data"]), read_split(run.split, label_separator=separator)
    gone = [row.path for row in rows if not (root / row.path).is_file()]
    if gone:
        raise RunError(
            f"resume: {len(gone)} of the {len(rows)} images that the run began with are gone from "
            f"{root}; the first: `{gone[0]}`. Put them back, or start anew."
        )
    return ImageFolder(root, tuple(record["class_names"]), tuple(rows), ())


def parent_run(*, is_main: bool) -> Path | None:
    """Name the run directory of the process that started this one; None in the main process."""
    path = os.environ.get(RUN_VARIABLE)
    return Path(path) if path and not is_main else None
