"""``finetune train``: a folder of labelled images in, a trained, measured, exported model out."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import rich
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from finetune.commands.components import (
    build_classifier,
    build_data,
    build_hardware,
    build_module,
    build_preprocess,
    build_trainer,
    monitor_key,
    monitor_mode,
    run_folder_name,
)
from finetune.commands.dataset import audit_images, find_images, split_images
from finetune.commands.outcome import TrainResult, finish, say_what_is_there
from finetune.commands.plan import print_plan
from finetune.config import TrainConfig
from finetune.data.audit import Audit
from finetune.data.discover import ImageFolder
from finetune.data.splits import read_split, write_split
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


def run(config: TrainConfig, as_yaml: str) -> TrainResult | None:
    """Fine-tune. Whatever can be refused is refused before any weight is loaded.

    Args:
        config: validated settings.
        as_yaml: the same as composed, for the run directory.

    Returns:
        None in the helper processes of a training on several devices.

    Raises:
        FinetuneError: what is wrong, for the user.
        KeyboardInterrupt: after saying how to go on.
    """
    started = time.monotonic()
    is_main = getattr(rank_zero_only, "rank", 0) == 0
    console = rich.get_console() if is_main else Console(quiet=True)
    quiet_lightning()
    hardware = build_hardware(config)
    check_optimizer(config.optimizer.name)
    folder, audit = _images(config, console, is_main=is_main)
    _check_batches(config, folder, hardware)
    _check_resumable(config)
    if is_main and config.resume is None:
        check_run(config.runs, run_folder_name(config, folder.root), config.name)

    seed_everything(config.seed, verbose=False)
    classifier = build_classifier(
        config, num_classes=len(folder.class_names), load_weights=config.resume is None
    )
    preprocess = build_preprocess(config, classifier)
    data = build_data(config, folder, preprocess, hardware)
    module = build_module(config, classifier, preprocess, num_classes=len(folder.class_names))
    directory = _run_directory(config, folder, is_main=is_main)
    if is_main:
        if config.resume is None:
            _write_inputs(directory, config, as_yaml, folder, audit, hardware)
        print_plan(config, folder, audit, module, data, hardware, directory, console)

    epochs = EpochTable(
        directory.epochs, monitor=monitor_key(config), mode=monitor_mode(config), console=console
    )
    trainer = build_trainer(config, hardware, directory, epochs, console)
    resume_from = directory.last_checkpoint if config.resume is not None else None
    with _known_to_children(directory):
        is_finished = fit(trainer, module, data, resume_from=resume_from)
    if not is_main:
        return None
    if not is_finished:
        _say_how_to_go_on(directory, console)
        raise KeyboardInterrupt
    result = finish(config, folder, directory, classifier, preprocess, epochs, console)
    say_what_is_there(result, directory, time.monotonic() - started, console)
    return result


def _images(
    config: TrainConfig, console: Console, *, is_main: bool
) -> tuple[ImageFolder, Audit | None]:
    """Return the images with their splits, and the audit unless the splits are known already."""
    dataset = config.dataset
    if config.resume is not None:
        # The run knows where its images are, also when it goes on from another folder.
        root = Path(read_record(RunDirectory(config.resume))["data"])
        dataset = dataset.model_copy(update={"root": root})
    folder = find_images(dataset)
    known = config.resume if config.resume is not None else _parent_run(is_main=is_main)
    if known is not None:
        return replace(folder, samples=read_split(RunDirectory(known).split)), None
    audit = audit_images(config.dataset, folder, console=console)
    return split_images(config.dataset, folder, audit, seed=config.seed), audit


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


def _run_directory(config: TrainConfig, folder: ImageFolder, *, is_main: bool) -> RunDirectory:
    if config.resume is not None:
        return RunDirectory(config.resume.resolve())
    if not is_main:  # only the main process writes
        return RunDirectory(_parent_run(is_main=False) or config.runs)
    return create_run(config.runs, run_folder_name(config, folder.root), config.name)


def _write_inputs(
    directory: RunDirectory,
    config: TrainConfig,
    as_yaml: str,
    folder: ImageFolder,
    audit: Audit | None,
    hardware: Hardware,
) -> None:
    """Write what is needed to run again, before the first step."""
    write_text(directory.config, as_yaml)
    write_split(directory.split, folder.samples)
    if audit is not None:
        write_json(directory.audit, audit.to_dict())
    record = {
        "command": command_line(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": config.seed,
        "data": str(folder.root),
        "class_names": list(folder.class_names),
        "hardware": hardware.reasons,
        "versions": versions(),
    }
    write_json(directory.record, record)


def _say_how_to_go_on(directory: RunDirectory, console: Console) -> None:
    if directory.last_checkpoint.is_file():
        console.print(
            f"\nStopped. The last finished epoch is kept. Go on with:\n"
            f"  {typed('train', resume=directory.path)}",
            markup=False,
            soft_wrap=True,
        )
    else:
        console.print("\nStopped before the first epoch ended; there is nothing to go on from.")
