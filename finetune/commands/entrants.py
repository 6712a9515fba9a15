"""The runs of a comparison, as they are read from their directories."""

import csv
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.commands.dataset import columns_of_run
from finetune.data.discover import Sample
from finetune.data.labelled_images import make_targets
from finetune.data.split_file import read_split
from finetune.errors import ConfigError, RunError
from finetune.exports.description import Description, read_description
from finetune.exports.interface import JSON_NAME
from finetune.prediction.writers import class_columns, disarm_formula, escape_undecodable
from finetune.run import RunDirectory, read_figures, read_record, typed


@dataclass(frozen=True)
class Entrant:
    """A finished run that takes part.

    Attributes:
        name: short, and unlike the others'.
        run: its directory.
        figures: its ``metrics.json``.
        description: of its model.
        device: that it was trained on; None where its record does not say.
        root: folder of its images.
        samples: the ``N`` images of the split that could be read, in order.
        probabilities: ``[N, C]``.
        targets: classes ``[N]``, or labels ``[N, C]``.
    """

    name: str
    run: RunDirectory
    figures: Mapping[str, Any]
    description: Description
    device: str | None
    root: Path
    samples: tuple[Sample, ...]
    probabilities: Tensor
    targets: Tensor


def find_runs(typed_paths: Sequence[Path]) -> tuple[list[RunDirectory], list[str]]:
    """Find the finished runs among folders and patterns; a folder of runs stands for these.

    Returns:
        The runs in the order of the words, and a sentence on each thing that is left out.

    Raises:
        RunError: a folder is not there, or holds nothing that looks like a run.
    """
    runs: dict[Path, RunDirectory] = {}
    skipped: list[str] = []
    for path in typed_paths:
        for candidate in _matches(path):
            if not candidate.is_dir():
                skipped.append(f"{candidate}: a file.")
                continue
            inside = [candidate] if _is_run(candidate) else _runs_in(candidate)
            if not inside:
                raise RunError(f"{candidate} is not a run directory, and none is in it.")
            for folder in inside:
                reason = _reason_to_skip(folder, runs)
                if reason is None:
                    runs[folder.resolve()] = RunDirectory(folder.resolve())
                else:
                    skipped.append(f"{folder}: {reason}")
    return list(runs.values()), skipped


def _matches(path: Path) -> list[Path]:
    if path.exists() or path.is_symlink():
        return [path]
    found = [Path(match) for match in sorted(glob.glob(str(path)))]  # noqa: PTH207 - ** and roots
    if not found:
        raise RunError(
            f"{path}: there is no such folder. Train first, or name runs: "
            f"{typed('compare')} runs/DATASET/TIME runs/DATASET/TIME."
        )
    return found


def _is_run(folder: Path) -> bool:
    return RunDirectory(folder).config.is_file()


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def _reason_to_skip(folder: Path, known: Mapping[Path, object]) -> str | None:
    run = RunDirectory(folder)
    if folder.resolve() in known:
        return "listed already."
    if not run.metrics.is_file():
        return f"unfinished, it has no {run.metrics.name}."
    if "folds" in read_figures(run):
        return f"a cross-validation; its folds are runs, such as {run.fold(0).path}."
    return None


def read_entrants(
    runs: Sequence[RunDirectory], names: Sequence[str], split: str
) -> tuple[list[Entrant], str]:
    """Read what each run says about the images of one split.

    Args:
        runs: at least one.
        names: of the runs.
        split: or ``auto`` for ``test`` where every run has it, else ``val``.

    Returns:
        The runs, and the split.

    Raises:
        ConfigError: the runs do different things.
        RunError: a run has no such split, or its files are damaged.
    """
    described = [read_description(run.path / JSON_NAME) for run in runs]
    _check_alike(described, names)
    rows = [read_split(run.split, label_separator=columns_of_run(run).separator) for run in runs]
    if split == "auto":
        have_test = all(
            run.predictions("test").is_file() and any(row.split == "test" for row in samples)
            for run, samples in zip(runs, rows, strict=True)
        )
        split = "test" if have_test else "val"
    entrants = [
        _read_entrant(run, name, description, samples, split)
        for run, name, description, samples in zip(runs, names, described, rows, strict=True)
    ]
    return entrants, split


def _check_alike(described: Sequence[Description], names: Sequence[str]) -> None:
    first = described[0]
    for description, name in zip(described, names, strict=True):
        if description.task != first.task:
            raise ConfigError(
                f"runs: {names[0]} is {first.task}, {name} is {description.task}; compare runs of "
                "one task."
            )
        if description.class_names == first.class_names:
            continue
        lacking = [label for label in first.class_names if label not in description.class_names]
        more = [label for label in description.class_names if label not in first.class_names]
        if not lacking and not more:
            raise ConfigError(
                f"runs: {names[0]} and {name} have their classes in another order; train one of "
                "them again."
            )
        whose, classes = (names[0], lacking) if lacking else (name, more)
        raise ConfigError(
            f"runs: {names[0]} and {name} know different classes; only {whose} knows "
            f"{_some(classes)}. Compare runs that were trained on the same classes."
        )


def _some(words: Sequence[str]) -> str:
    shown = ", ".join(f'"{word}"' for word in words[:3])
    return shown if len(words) <= 3 else f"{shown} and {len(words) - 3} more"


def _read_entrant(
    run: RunDirectory, name: str, description: Description, rows: Sequence[Sample], split: str
) -> Entrant:
    samples = [row for row in rows if row.split == split]
    table = run.predictions(split)
    if not samples:
        raise RunError(f"split={split}: {run.path} has no image there; choose another split.")
    if not table.is_file():
        raise RunError(
            f"{run.path} has no {table.name}; write it: "
            f"{typed('evaluate', run=run.path, split=split)}"
        )
    record = read_record(run)
    root = Path(record["data"])
    known, probabilities = [], []
    columns = class_columns(description.class_names)
    try:
        for sample, row in _pair_up(table, root, samples):
            if not row["error"]:
                known.append(sample)
                probabilities.append([_probability(row[column]) for column in columns])
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        raise RunError(
            f"{table} does not hold the answers of this model to the {len(samples)} images of "
            f"{split}; write it anew: {typed('evaluate', run=run.path, split=split)}"
        ) from None
    if not known:
        raise RunError(f"{table} holds no answer; none of its images could be read.")
    is_multilabel = description.task == "multilabel"
    return Entrant(
        name=name,
        run=run,
        figures=read_figures(run),
        description=description,
        device=(record.get("decisions") or {}).get("device"),
        root=root,
        samples=tuple(known),
        probabilities=torch.tensor(probabilities, dtype=torch.float64),
        targets=make_targets(known, description.class_names, is_multilabel=is_multilabel),
    )


def _probability(text: str) -> float:
    value = float(text)
    if not -1e-6 <= value <= 1 + 1e-6:  # what rounding may do
        raise ValueError(f"got {value}, expected a probability")
    return value


def _pair_up(
    table: Path, root: Path, samples: Sequence[Sample]
) -> Iterator[tuple[Sample, dict[str, str]]]:
    """Give each image with its row.

    Raises:
        ValueError: the table is of other images.
    """
    with table.open(encoding="utf-8", newline="") as file:
        for sample, row in zip(samples, csv.DictReader(file), strict=True):
            if row["path"] != disarm_formula(escape_undecodable(str(root / sample.path))):
                raise ValueError(f"{row['path']}: expected {sample.path}")
            yield sample, row


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name each folder by the shortest end of its path that no other has."""
    names = []
    for path in paths:
        for length in range(1, len(path.parts) + 1):
            name = "/".join(path.parts[-length:])
            if sum(other.parts[-length:] == path.parts[-length:] for other in paths) == 1:
                break
        names.append(name)
    return names
