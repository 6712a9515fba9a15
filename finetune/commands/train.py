"""``finetune train``: a folder of labelled images in, a trained, measured, exported model out."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path

from finetune.commands.budget import end_of_steps, keep_to_time
from finetune.commands.candidates import choose_weights
from finetune.commands.components import build_trainer, monitor_key
from finetune.commands.contact_sheet import draw_contact_sheet
from finetune.commands.dataset import columns_of
from finetune.commands.folds import FoldsResult, OpenRun, train_folds
from finetune.commands.gain import measure_gain
from finetune.commands.going_on import launcher_id, note_resumption, restarted_run
from finetune.commands.images import RUN_VARIABLE
from finetune.commands.outcome import TrainResult, finish, say_what_is_there
from finetune.commands.plan import print_plan
from finetune.commands.prefix import skip_frozen_prefix
from finetune.commands.probe import start_from_probe
from finetune.commands.rates import find_choice, search_choice
from finetune.commands.recipe import needs_steps, starts_from_probe
from finetune.commands.requeue import requeue
from finetune.commands.setup import Setup, is_main_process, prepare
from finetune.config import TrainConfig
from finetune.data.datamodule import ImageDataModule
from finetune.data.split_file import write_split
from finetune.errors import ConfigError, Stopped
from finetune.lock import locked
from finetune.run import (
    RunDirectory,
    command_line,
    read_record,
    replacing,
    sweep_leftovers,
    typed,
    versions,
    write_json,
    write_text,
)
from finetune.training.checkpoints import load_checkpoint
from finetune.training.faults import explain
from finetune.training.last_checkpoint import LastCheckpoint
from finetune.training.recipe import describe
from finetune.training.stop_request import StopRequest
from finetune.training.trainer import compiled_network, fit, quiet_lightning

Hold = Callable[[Path], None]
"""Takes a run directory for this process alone, until the training has ended."""


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
        Stopped: likewise, after another signal.
    """
    begun = restarted_run(config, as_yaml, os.environ)
    if begun is not None:
        config = config.model_copy(update={"resume": begun})
    request = StopRequest(config.trainer.checkpoint_every_minutes)
    with ExitStack() as stack:
        stack.enter_context(_ctrl_c_as_python_knows_it())
        stack.enter_context(request.listening())

        def hold(path: Path) -> None:
            if is_main_process():
                stack.enter_context(locked(path))
                for folder in (path, path / "checkpoints", *path.glob("fold_*/checkpoints")):
                    sweep_leftovers(folder)

        if config.resume is not None:
            hold(config.resume)
        once = partial(train_once, request=request, hold=hold)
        if config.dataset.fold == "all":
            return train_folds(config, as_yaml, once, hold)
        return once(config, as_yaml)


def train_once(
    config: TrainConfig,
    as_yaml: str,
    open_folds: OpenRun | None = None,
    *,
    request: StopRequest,
    hold: Hold,
) -> TrainResult | None:
    """Fine-tune one model.

    Args:
        config: validated settings.
        as_yaml: the same as composed, for the run directory.
        open_folds: gives the run of which this is a fold; None for a run of its own.
        request: hears the signals.
        hold: takes a new run directory.
    """
    started = time.monotonic()
    quiet_lightning()
    minutes = config.trainer.max_time_minutes
    deadline = None if minutes is None else started + 60 * minutes
    is_to_find = config.optimizer.lr == "find"
    setup = prepare(config, open_folds)
    if setup.is_main and config.resume is None:
        if open_folds is None:
            hold(setup.run.path)
        if deadline is not None:
            setup = keep_to_time(setup, deadline)
        _write_inputs(setup, as_yaml)
    with _says_how_to_go_on(setup, open_folds() if open_folds else setup.run):
        if setup.is_main:
            print_plan(setup)
            if config.resume is not None:
                note_resumption(setup.run, setup.start, partial(_say, setup))
        begins = setup.start.checkpoint is None
        if setup.is_main and begins and starts_from_probe(setup.config):
            start_from_probe(setup)
        if needs_steps(setup.config):
            steps = skip_frozen_prefix(setup)
            if begins:
                setup = _with_rate(setup, steps, is_to_find=is_to_find)
            _take_steps(setup, steps, deadline, request)
        if not setup.is_main:
            return None
        if setup.hardware.strategy == "fsdp":
            setup = setup.with_new_network()
        selection = choose_weights(setup)
        gain = measure_gain(setup, selection.values[selection.name][monitor_key(setup.config)])
        result = finish(setup, selection, started, gain)
        say_what_is_there(setup, result, time.monotonic() - started)
        return result


def _take_steps(
    setup: Setup, steps: ImageDataModule, deadline: float | None, request: StopRequest
) -> None:
    """Train to the end, if that was not reached before."""
    checkpoint = setup.start.checkpoint
    if checkpoint is not None:
        last = setup.run.last_checkpoint
        if setup.is_main and checkpoint != last:  # damaged, or older; and the steps may all be done
            with replacing(last) as temporary:
                shutil.copyfile(checkpoint, temporary)
        callbacks = load_checkpoint(checkpoint)["callbacks"]
        if callbacks.get(LastCheckpoint.__qualname__, {}).get("is_over"):
            setup.epochs.load_state_dict(callbacks[type(setup.epochs).__qualname__])
            return
    end = None if deadline is None else end_of_steps(deadline)
    trainer = build_trainer(
        setup.config, setup.hardware, setup.run, setup.epochs, setup.console, deadline=end
    )
    setup.module.request = request
    compiled = compiled_network if setup.config.trainer.compile else nullcontext
    with _known_to_children(setup.run), compiled(setup.classifier):
        fit(trainer, setup.module, steps, resume_from=checkpoint)


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
        "launcher": launcher_id(os.environ),
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


@contextmanager
def _ctrl_c_as_python_knows_it() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        if stopped.number != signal.SIGINT:
            raise
        raise KeyboardInterrupt from None


@contextmanager
def _says_how_to_go_on(setup: Setup, whole: RunDirectory) -> Iterator[None]:
    """Let no training end before its end without a word of what is kept.

    A process that only helps says nothing, and ends well when it was asked to.
    """
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stopped:
        if setup.is_main:
            _say(setup, f"\nStopped; {_what_is_kept(setup.run, whole)}")
            if isinstance(stopped, Stopped):
                requeue(stopped.number, os.environ, partial(_say, setup))
            raise
    except ConfigError:
        raise
    except Exception as error:
        explained = explain(error, num_processes=setup.hardware.world_size)
        if setup.is_main:
            _say(setup, f"\nThe training failed; {_what_is_kept(setup.run, whole)}")
        if explained is None or explained is error:
            raise
        raise explained from error


def _what_is_kept(directory: RunDirectory, whole: RunDirectory) -> str:
    command = typed("train", resume=whole.path)
    last = directory.last_checkpoint
    if not last.is_file():
        return f"no step is saved yet. Begin again with:\n  {command}"
    return f"{last.name} holds what was learnt so far. Go on with:\n  {command}"


def _say(setup: Setup, text: str) -> None:
    setup.console.print(text, markup=False, highlight=False, soft_wrap=True)
