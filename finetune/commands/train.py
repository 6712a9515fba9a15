"""``finetune train``: a folder of labelled images in, a trained, measured, exported model out."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path

import rich
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from finetune.commands.components import (
    build_classifier,
    build_hardware,
    build_module,
    build_preprocess,
    build_trainer,
    monitor_key,
    monitor_mode,
)
from finetune.commands.contact_sheet import draw_contact_sheet
from finetune.commands.dataset import (
    audit_images,
    columns_of,
    data_name,
    find_images,
    split_images,
)
from finetune.commands.folds import FoldsResult, OpenRun, train_folds
from finetune.commands.loaders import build_data
from finetune.commands.outcome import TrainResult, finish, say_what_is_there
from finetune.commands.plan import Plan, print_plan
from finetune.commands.settle import settle
from finetune.config import TrainConfig
from finetune.data.audit import Audit, check_findings
from finetune.data.discover import ImageFolder
from finetune.data.split_file import read_split, write_split
from finetune.errors import ConfigError, RunError
from finetune.run import (
    RunDirectory,
    check_run,
    command_line,
    create_run,
    read_record,
    typed,
    versions,
    write_json,
    write_text,
)
from finetune.training.callbacks import EpochTable
from finetune.training.checkpoints import load_checkpoint
from finetune.training.hardware import Hardware
from finetune.training.optim import check_optimizer
from finetune.training.trainer import fit, quiet_lightning

RUN_VARIABLE = "FINETUNE_RUN"
"""Tells the processes that DDP starts on this machine where the run directory is."""


def run(config: TrainConfig, as_yaml: str) -> TrainResult | FoldsResult | None:
    """Fine-tune, once or once for each fold.

    Args:
        config: validated settings.
        as_yaml: the same as composed, for the run directory.

    Returns:
        None in the helper processes of a training on several devices.

    Raises:
        FinetuneError: what is wrong, for the user.
        KeyboardInterrupt: after saying how to go on.
    """
    if config.dataset.fold == "all":
        return train_folds(config, as_yaml, train_once)
    return train_once(config, as_yaml)


def train_once(
    config: TrainConfig, as_yaml: str, open_folds: OpenRun | None = None
) -> TrainResult | None:
    """Fine-tune one model. Whatever can be refused is refused before any weight is loaded.

    Args:
        config: validated settings.
        as_yaml: the same as composed, for the run directory.
        open_folds: gives the run of which this is a fold; None for a run of its own.
    """
    started = time.monotonic()
    is_main = getattr(rank_zero_only, "rank", 0) == 0
    console = rich.get_console() if is_main else Console(quiet=True)
    quiet_lightning()
    hardware = build_hardware(config)
    check_optimizer(config.optimizer.name)
    folder, audit = _images(config, console, is_main=is_main, looks_ahead=open_folds is not None)
    config, reasons = settle(config, folder)
    _check_batches(config, folder, hardware)
    _check_resumable(config)
    is_first = open_folds is None or config.dataset.fold == 0
    if is_main and config.resume is None and is_first:
        check_run(config.runs, data_name(config.dataset), config.name)

    seed_everything(config.seed, verbose=False)
    classifier = build_classifier(
        config, num_classes=len(folder.class_names), load_weights=config.resume is None
    )
    preprocess = build_preprocess(config, classifier)
    data = build_data(config, folder, audit, preprocess, hardware)
    module = build_module(config, classifier, preprocess, folder)
    directory = _run_directory(config, open_folds, is_main=is_main)
    if is_main:
        if config.resume is None:
            decisions = {**hardware.reasons, **reasons}
            _write_inputs(directory, config, as_yaml, folder, audit, decisions)
            samples = [sample for sample in folder.samples if sample.split == "train"]
            draw_contact_sheet(directory.contact_sheet, samples, data.train, preprocess)
        plan = Plan(config, folder, audit, module, data, hardware, directory, reasons)
        print_plan(plan, console)

    epochs = EpochTable(
        directory.epochs,
        metrics=config.dataset.metrics,
        monitor=monitor_key(config),
        mode=monitor_mode(config),
        console=console,
    )
    trainer = build_trainer(config, hardware, directory, epochs, console)
    resume_from = directory.last_checkpoint if config.resume is not None else None
    with _known_to_children(directory):
        is_finished = fit(trainer, module, data, resume_from=resume_from)
    if not is_main:
        return None
    if not is_finished:
        _say_how_to_go_on(directory, open_folds() if open_folds else directory, console)
        raise KeyboardInterrupt
    result = finish(config, folder, directory, classifier, preprocess, epochs, console)
    say_what_is_there(result, directory, config.task, time.monotonic() - started, console)
    return result


def _images(
    config: TrainConfig, console: Console, *, is_main: bool, looks_ahead: bool
) -> tuple[ImageFolder, Audit | None]:
    """Return the images with their splits, and the audit unless nothing asks for it.

    With ``looks_ahead``, what will stop a later fold stops the first one.
    """
    dataset = config.dataset
    audit_of = partial(audit_images, dataset, cache_folder=config.cache_folder, console=console)
    known = config.resume if config.resume is not None else _parent_run(is_main=is_main)
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
        RunError: some are not there any more.
    """
    record = read_record(run)
    root, rows = Path(record["data"]), read_split(run.split, label_separator=separator)
    gone = [row.path for row in rows if not (root / row.path).is_file()]
    if gone:
        raise RunError(
            f"resume: {len(gone)} of the {len(rows)} images that the run began with are gone from "
            f"{root}; the first: `{gone[0]}`. Put them back, or start anew."
        )
    return ImageFolder(root, tuple(record["class_names"]), tuple(rows), ())


def _parent_run(*, is_main: bool) -> Path | None:
    path = os.environ.get(RUN_VARIABLE)
    return Path(path) if path and not is_main else None


@contextmanager
def _known_to_children(directory: RunDirectory) -> Iterator[None]:
    os.environ[RUN_VARIABLE] = str(directory.path.resolve())
    try:
        yield
    finally:
        os.environ.pop(RUN_VARIABLE, None)


def _check_batches(config: TrainConfig, folder: ImageFolder, hardware: Hardware) -> None:
    """Refuse a batch that cannot be filled, divided, or normalised over.

    Raises:
        ConfigError: which of these, and what would do.
    """
    size, world_size = config.trainer.batch_size, hardware.world_size
    train = sum(sample.split == "train" for sample in folder.samples)
    if size > train:
        raise ConfigError(
            f"trainer.batch_size: got {size}, but there are {train} images to train on; "
            f"use at most {train}."
        )
    if size % world_size:
        raise ConfigError(
            f"trainer.batch_size: got {size}, expected a multiple of the {world_size} processes, "
            f"such as {(size // world_size + 1) * world_size}."
        )
    if size == world_size and config.freeze.policy != "backbone":
        raise ConfigError(
            f"trainer.batch_size: got {size}, one image for each process; BatchNorm needs at "
            f"least two: {2 * world_size}."
        )


def _check_resumable(config: TrainConfig) -> None:
    """Refuse a run without a checkpoint that can be read.

    Raises:
        RunError: the run ended before its first epoch did.
        ModelError: the checkpoint is damaged, or none of ours.
    """
    if config.resume is None:
        return
    last = RunDirectory(config.resume).last_checkpoint
    if not last.is_file():
        raise RunError(
            f"resume: {config.resume} has no {last.name}; it was interrupted before its first "
            "epoch ended. Start anew."
        )
    load_checkpoint(last)


def _run_directory(
    config: TrainConfig, open_folds: OpenRun | None, *, is_main: bool
) -> RunDirectory:
    if open_folds is not None:
        directory = open_folds().fold(int(config.dataset.fold))
        directory.checkpoints.mkdir(parents=True, exist_ok=True)
        return directory
    if config.resume is not None:
        return RunDirectory(config.resume.resolve())
    if not is_main:  # only the main process writes
        return RunDirectory(_parent_run(is_main=False) or config.runs)
    return create_run(config.runs, data_name(config.dataset), config.name)


def _write_inputs(
    directory: RunDirectory,
    config: TrainConfig,
    as_yaml: str,
    folder: ImageFolder,
    audit: Audit | None,
    decisions: dict[str, str],
) -> None:
    """Write what is needed to run again, before the first step."""
    write_text(directory.config, as_yaml)
    columns = columns_of(config.dataset, config.task)
    write_split(directory.split, folder.samples, label_separator=columns.separator or "|")
    if audit is not None:
        write_json(directory.audit, audit.to_dict())
    record = {
        "command": command_line(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": config.seed,
        "data": str(folder.root),
        "class_names": list(folder.class_names),
        "columns": asdict(columns),
        "decisions": decisions,
        "versions": versions(),
    }
    write_json(directory.record, record)


def _say_how_to_go_on(directory: RunDirectory, whole: RunDirectory, console: Console) -> None:
    if directory.last_checkpoint.is_file() or whole is not directory:
        console.print(
            f"\nStopped. The last finished epoch is kept. Go on with:\n"
            f"  {typed('train', resume=whole.path)}",
            markup=False,
            soft_wrap=True,
        )
    else:
        console.print("\nStopped before the first epoch ended; there is nothing to go on from.")
