"""``finetune train``: a folder of labelled images in, a trained, measured, exported model out."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime

from rich.console import Console

from finetune.commands.budget import end_of_steps, keep_to_time
from finetune.commands.candidates import choose_weights
from finetune.commands.components import build_trainer
from finetune.commands.contact_sheet import draw_contact_sheet
from finetune.commands.dataset import columns_of
from finetune.commands.folds import FoldsResult, OpenRun, train_folds
from finetune.commands.images import RUN_VARIABLE
from finetune.commands.outcome import TrainResult, finish, say_what_is_there
from finetune.commands.plan import print_plan
from finetune.commands.prefix import skip_frozen_prefix
from finetune.commands.probe import start_from_probe
from finetune.commands.rates import find_choice, search_choice
from finetune.commands.recipe import needs_steps, starts_from_probe
from finetune.commands.setup import Setup, prepare
from finetune.config import TrainConfig
from finetune.data.datamodule import ImageDataModule
from finetune.data.split_file import write_split
from finetune.run import (
    RunDirectory,
    command_line,
    read_record,
    typed,
    versions,
    write_json,
    write_text,
)
from finetune.training.recipe import describe
from finetune.training.trainer import compiled_network, fit, quiet_lightning


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
    """Fine-tune one model.

    Args:
        config: validated settings.
        as_yaml: the same as composed, for the run directory.
        open_folds: gives the run of which this is a fold; None for a run of its own.
    """
    started = time.monotonic()
    quiet_lightning()
    minutes = config.trainer.max_time_minutes
    deadline = None if minutes is None else started + 60 * minutes
    is_new = config.resume is None
    typed_lr = config.optimizer.lr
    setup = prepare(config, open_folds)
    if setup.is_main and is_new:
        if deadline is not None:
            setup = keep_to_time(setup, deadline)
        _write_inputs(setup, as_yaml)
    if setup.is_main:
        print_plan(setup)
        if is_new and starts_from_probe(setup.config):
            start_from_probe(setup)
    if needs_steps(setup.config):
        steps = skip_frozen_prefix(setup)
        if is_new:
            setup = _with_rate(setup, steps, is_to_find=typed_lr == "find")
        is_finished = _take_steps(setup, steps, deadline)
        if setup.is_main and not is_finished:
            whole = open_folds() if open_folds else setup.run
            _say_how_to_go_on(setup.run, whole, setup.console)
            raise KeyboardInterrupt
    if not setup.is_main:
        return None
    if setup.hardware.strategy == "fsdp":
        setup = setup.with_new_network()
    result = finish(setup, choose_weights(setup), started)
    say_what_is_there(setup, result, time.monotonic() - started)
    return result


def _take_steps(setup: Setup, steps: ImageDataModule, deadline: float | None) -> bool:
    """Train to the end; False where the user interrupted."""
    end = None if deadline is None else end_of_steps(deadline)
    trainer = build_trainer(
        setup.config, setup.hardware, setup.run, setup.epochs, setup.console, deadline=end
    )
    resume_from = setup.run.last_checkpoint if setup.config.resume is not None else None
    compiled = compiled_network if setup.config.trainer.compile else nullcontext
    with _known_to_children(setup.run), compiled(setup.classifier):
        return fit(trainer, setup.module, steps, resume_from=resume_from)


def _with_rate(setup: Setup, steps: ImageDataModule, *, is_to_find: bool) -> Setup:
    """Look for a learning rate where that is asked for, and keep it with the run."""
    choice = None
    if is_to_find:
        choice = find_choice(setup, steps)
        setup = setup.with_choices({"optimizer.lr": choice})
    if setup.config.recipe == "search":
        choice = search_choice(setup, steps)
        setup = setup.with_choices({"optimizer.lr": choice})
    if choice is not None:
        record = read_record(setup.run)
        record["recipe"]["optimizer.lr"] = choice.value
        record["decisions"]["optimizer.lr"] = f"{choice.value} ({choice.reason})"
        write_json(setup.run.record, record)
    return setup


@contextmanager
def _known_to_children(directory: RunDirectory) -> Iterator[None]:
    os.environ[RUN_VARIABLE] = str(directory.path.resolve())
    try:
        yield
    finally:
        os.environ.pop(RUN_VARIABLE, None)


def _write_inputs(setup: Setup, as_yaml: str) -> None:
    """Write what is needed to run again, before the first step, and draw what training sees."""
    config, folder, run = setup.config, setup.folder, setup.run
    write_text(run.config, as_yaml)
    columns = columns_of(config.dataset, config.task)
    write_split(run.split, folder.samples, label_separator=columns.separator or "|")
    if setup.audit is not None:
        write_json(run.audit, setup.audit.to_dict())
    record = {
        "command": command_line(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": config.seed,
        "data": str(folder.root),
        "class_names": list(folder.class_names),
        "columns": asdict(columns),
        "decisions": {
            **setup.hardware.reasons,
            **setup.reasons,
            **describe(setup.choices),
        },
        "recipe": {key: choice.value for key, choice in setup.choices.items()},
        "versions": versions(),
    }
    write_json(run.record, record)
    samples = [sample for sample in folder.samples if sample.split == "train"]
    draw_contact_sheet(run.contact_sheet, samples, setup.data.train, setup.preprocess)


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
