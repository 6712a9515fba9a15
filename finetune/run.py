"""The run directory: what is written where, and under which name.

runs/<dataset>/<time>/
├── config.yaml            every setting, composed; ${oc.env:…} as it was typed
├── run.json               command, seed, decisions, hardware, versions
├── audit.json             what is wrong with the images
├── split.csv              path, label and split of every image
├── images.csv             path, size, time and SHA-256 of every image as the run began
├── .lock                  held by the process that writes here
├── metrics.csv            one row per epoch; epoch 0 is the probe
├── metrics.json           of the chosen weights, per split, with intervals and calibration
├── probe.json             strengths that were tried, and their loss
├── learning_rate.png  search.json     with optimizer.lr=find; with recipe=search
├── report.html            what the model knows, where it fails, and how sure one may be
├── label_issues.csv       labels that are probably wrong
├── contact_sheet.png      images as they are, and as training sees them
├── curves.png  confusion_matrix.png   (labels.png with task=multilabel)
├── predictions_val.csv    one row per validation image
├── model.json  model.safetensors  README.md   the bundle and its card
├── model.ts  model.ts.check.json      the export, and how it was checked
└── checkpoints/           probe.ckpt (what fine-tuning starts from), best.ckpt, last.ckpt
runs/latest                a link to the newest run

With ``dataset.fold=all``, each fold has such a folder in the run's, which itself holds
``metrics.json`` (mean and deviation), ``predictions_out_of_fold.csv`` and ``label_issues.csv``.
"""

import errno
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.config import Task
from finetune.errors import RunError
from finetune.record import check_figures, check_record, read_json

LATEST = "latest"
_LEFTOVER = re.compile(r"\.[^/]+\.\d+(\.\w+)?")
"""The temporary names of `replacing`."""


class RunDirectory:
    """The names of a run's files. ``RunDirectory(path)`` looks at nothing and writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.record = path / "run.json"
        self.audit = path / "audit.json"
        self.split = path / "split.csv"
        self.epochs = path / "metrics.csv"
        self.metrics = path / "metrics.json"
        self.contact_sheet = path / "contact_sheet.png"
        self.curves = path / "curves.png"
        self.checkpoints = path / "checkpoints"
        self.probe = path / "probe.json"
        self.rate_curve = path / "learning_rate.png"
        self.search = path / "search.json"
        self.probe_checkpoint = self.checkpoints / "probe.ckpt"
        self.best_checkpoint = self.checkpoints / "best.ckpt"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.torchscript = path / "model.ts"
        self.report = path / "report.html"
        self.label_issues = path / "label_issues.csv"
        self.card = path / "README.md"
        self.out_of_fold = path / "predictions_out_of_fold.csv"

    def predictions(self, split: str) -> Path:
        """Name the table of predictions of one split."""
        return self.path / f"predictions_{split}.csv"

    def picture(self, task: Task) -> Path:
        """Name the picture of the figures: how classes are confused, or how labels are found."""
        return self.path / ("confusion_matrix.png" if task == "multiclass" else "labels.png")

    def fold(self, index: int) -> "RunDirectory":
        """Name the run directory of one fold, from 0."""
        return RunDirectory(self.path / f"fold_{index}")


def create_run(runs: Path, dataset: str, name: str | None) -> RunDirectory:
    """Make a new, empty run directory ``runs/<dataset>/<name or time>`` and point ``latest`` at it.

    Raises:
        RunError: the name is taken, or the folder cannot be written.
    """
    check_run(runs, dataset, name)
    folder = runs / dataset
    path = _make_named(folder, name) if name else _make_timed(folder)
    (path / "checkpoints").mkdir()
    _point_latest(runs, path)
    return RunDirectory(path)


def check_run(runs: Path, dataset: str, name: str | None) -> None:
    """Find out whether `create_run` could, before hours of work depend on that.

    Raises:
        RunError: the name is taken, or the folder cannot be written.
    """
    latest, folder = runs / LATEST, runs / dataset
    if dataset == LATEST:  # it would lie inside the run that the link points to
        raise RunError(
            f"{folder} is the link to the newest run, so that no data set can be called that; "
            "give it another name: dataset.name=NAME."
        )
    if latest.exists() and not latest.is_symlink():
        raise RunError(
            f"{latest} is no link, but a file or folder of its own; rename it, or choose another "
            "folder: runs=FOLDER."
        )
    check_writable(folder)
    if name and (folder / name).exists():
        raise _taken(folder / name)


def check_writable(folder: Path) -> None:
    """Make ``folder``, try to write in it, and leave everything as it was.

    Raises:
        RunError: it cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{os.getpid()}.trial"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise RunError(
            f"runs={folder} cannot be written: {error.strerror}. Choose another: runs=FOLDER."
        ) from None
    finally:
        with suppress(OSError):  # another process has begun to use them, or there are none
            for path in missing:
                path.rmdir()


def versions() -> dict[str, str]:
    """Give the versions of what decides a result."""
    names = ("finetune", "torch", "torchvision", "lightning", "timm", "albumentations", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def command_line() -> str:
    """Give the command that runs now, such as can be typed again."""
    return shlex.join(["finetune", *sys.argv[1:]])


def typed(verb: str, **overrides: object) -> str:
    """Write a command as the user would type it: with ``make`` where this one came from make."""
    program = os.environ.get("FINETUNE_PROGRAM", "finetune")
    return shlex.join([program, verb, *(f"{key}={value}" for key, value in overrides.items())])


def open_run(path: Path) -> RunDirectory:
    """Return the run directory at ``path`` (links resolved).

    Raises:
        RunError: there is none.
    """
    if not path.is_dir():
        raise RunError(
            f"run={path}: there is no such folder. Train first, or name a run: "
            "run=runs/DATASET/TIME."
        )
    run = RunDirectory(path.resolve())
    if not run.config.is_file():
        raise RunError(f"run={path} is not a run directory; it has no {run.config.name}.")
    return run


def read_record(run: RunDirectory) -> dict[str, Any]:
    """Read ``run.json``.

    Raises:
        RunError: it is missing or damaged.
    """
    return check_record(read_json(run.record), run.record)


def read_figures(run: RunDirectory) -> dict[str, Any]:
    """Read ``metrics.json``.

    Raises:
        RunError: it is missing or damaged.
    """
    return check_figures(read_json(run.metrics), run.metrics)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: beside the target first, then renamed."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        ValueError: a number is not finite; JSON has no word for it.
    """
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its place when the block succeeds.

    It is flushed to the disk before it is renamed, and its folder after that, so that a reader
    finds the old file or the whole new one, also after the power has failed; when the block
    fails, nothing is left. What a kill leaves, `sweep_leftovers` removes.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep_leftovers(folder: Path) -> list[str]:
    """Remove what `replacing` left in ``folder`` when its process was killed; return the names.

    Only for a folder in which nobody else writes.
    """
    found = [path for path in folder.glob(".*") if _LEFTOVER.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return sorted(path.name for path in found)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


def _make_named(folder: Path, name: str) -> Path:
    path = folder / name
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise _taken(path) from None
    return path


def _taken(path: Path) -> RunError:
    return RunError(
        f"name: {path} is there already. Choose another name, or go on with it: resume={path}."
    )


def _make_timed(folder: Path) -> Path:
    time = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    for count in range(1, 1000):
        path = folder / (time if count == 1 else f"{time}_{count}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run of the same second
            continue
        return path
    raise RunError(f"{folder} holds a thousand runs of {time}.")


def _point_latest(runs: Path, path: Path) -> None:
    """Replace the link in one step, so that it never points nowhere."""
    link = runs / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.relative_to(runs))
    link.replace(runs / LATEST)
