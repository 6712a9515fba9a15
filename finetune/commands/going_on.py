"""A training that goes on: from which checkpoint, and by itself after a restart."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.commands.dataset import data_name
from finetune.config import TrainConfig
from finetune.errors import RunError
from finetune.run import RunDirectory, command_line, read_record, versions, write_json
from finetune.training.checkpoints import load_checkpoint, newest_valid


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        checkpoint: goes on from here; None begins, or begins again, with the first step.
        notes: what to tell the user about it.
    """

    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()


def choose_start(config: TrainConfig) -> Start:
    """Choose the checkpoint from which a run goes on: ``last.ckpt``, or the newest that is whole.

    A run that was stopped before it saved anything begins again, as it was begun.

    Raises:
        RunError: the run has finished.
    """
    if config.resume is None:
        return Start()
    run = RunDirectory(config.resume)
    last, best = run.last_checkpoint, run.best_checkpoint
    if run.metrics.is_file() and not last.is_file():
        raise RunError(f"resume: {config.resume} has finished; there is nothing to go on with.")
    checkpoint, damages = newest_valid([last, best])
    notes = [f"Damaged, and not used: {damage}" for damage in damages]
    if checkpoint is None:
        return Start(None, (*notes, "Nothing was saved yet: the training begins again."))
    content = load_checkpoint(checkpoint)
    epoch = content["epoch"] + 1
    where = f"epoch {epoch}, step {content['global_step']}"
    return Start(checkpoint, (*notes, f"Going on from {checkpoint.name}: {where}."))


def note_resumption(run: RunDirectory, start: Start, console_print: Any) -> None:
    """Write into ``run.json`` that the run goes on, and say what is not as it was."""
    record = read_record(run)
    began_with, now = record.get("versions", {}), versions()
    changed = [
        f"{name} {began_with[name]} → {version}"
        for name, version in now.items()
        if name in began_with and began_with[name] != version
    ]
    notes = [*start.notes]
    if changed:
        notes.append(f"Not the versions that the run began with: {', '.join(changed)}.")
    entry = {
        "command": command_line(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "notes": notes,
    }
    write_json(run.record, {**record, "resumed": [*record.get("resumed", []), entry]})
    for note in notes:
        console_print(note)


def launcher_id(environ: Mapping[str, str]) -> str | None:
    """Name what will start this command again if it fails: a SLURM job, or torchrun.

    Returns:
        A name that all its attempts share and nothing else does; None where there is nothing of
        the kind, or no such name (torchrun on several machines without ``--rdzv-id``).
    """
    if "SLURM_JOB_ID" in environ:
        return f"slurm {environ.get('SLURM_CLUSTER_NAME', '')} {environ['SLURM_JOB_ID']}"
    run_id = environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    if run_id != "none":
        return f"torchrun {run_id}"
    if environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return None
    return f"torchrun {os.uname().nodename} {os.getppid()}"


def is_restart(environ: Mapping[str, str]) -> bool:
    """Tell whether SLURM or torchrun has started this command before."""
    counts = (environ.get("TORCHELASTIC_RESTART_COUNT"), environ.get("SLURM_RESTART_COUNT"))
    return any(count not in (None, "", "0") for count in counts)


def restarted_run(config: TrainConfig, as_yaml: str, environ: Mapping[str, str]) -> Path | None:
    """Find the run that an earlier attempt of the same job has begun and not finished.

    Args:
        config: of this training.
        as_yaml: the same as composed; a run with other settings is another run.
        environ: of the process.
    """
    launcher = launcher_id(environ)
    if config.resume is not None or launcher is None or not is_restart(environ):
        return None
    folder = config.runs / data_name(config.dataset)
    begun = []
    for record in folder.glob("*/run.json"):
        run = RunDirectory(record.parent)
        with suppress(RunError, OSError):
            known = read_record(run)
            is_same = run.config.read_text(encoding="utf-8") == as_yaml
            is_finished = run.metrics.is_file() and run.torchscript.is_file()
            if known.get("launcher") == launcher and is_same and not is_finished:
                begun.append((known["started"], run.path))
    return max(begun)[1] if begun else None
