"""``dataset.fold=all``: one training for each fold, and what they say together."""

import csv
import functools
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import rich
import torch
import yaml
from rich.markup import escape
from rich.table import Table

from finetune.commands.components import build_hardware
from finetune.commands.dataset import columns_of, data_name
from finetune.commands.going_on import launcher_id
from finetune.commands.label_issues import find_issues, write_issues
from finetune.commands.measure import compute_metrics
from finetune.config import TrainConfig
from finetune.data.discover import Sample
from finetune.data.labelled_images import make_targets
from finetune.data.split_file import read_split
from finetune.errors import ConfigError, RunError
from finetune.evaluation.intervals import bootstrap_intervals
from finetune.prediction.writers import class_columns, disarm_formula, escape_undecodable
from finetune.run import (
    RunDirectory,
    command_line,
    create_run,
    read_figures,
    read_record,
    replacing,
    typed,
    versions,
    write_json,
    write_text,
)

OpenRun = Callable[[], RunDirectory]
"""Gives the run directory of all folds, made at the first call: what is refused leaves nothing."""

TrainOnce = Callable[[TrainConfig, str, OpenRun], object]


@dataclass(frozen=True)
class FoldsResult:
    """What a cross-validation leaves.

    Attributes:
        run: the run directory, which holds one for each fold.
        mean: of each metric over the folds, by split; undefined ones are left out.
        deviation: the standard deviation (of a sample, n - 1) of the same.
        out_of_fold: metrics of all images, each predicted by the model that did not see it, with
            their ``intervals``.
    """

    run: Path
    mean: dict[str, dict[str, float]]
    deviation: dict[str, dict[str, float]]
    out_of_fold: dict[str, Any]


def train_folds(
    config: TrainConfig, as_yaml: str, train_once: TrainOnce, hold: Callable[[Path], None]
) -> FoldsResult:
    """Train on each fold in turn; a fold that is finished is not trained again.

    Args:
        config: with ``dataset.fold=all``.
        as_yaml: the same as composed, for the run directory.
        train_once: trains one fold in its run directory.
        hold: takes the run directory of all folds for this process alone.

    Raises:
        ConfigError: several devices are asked for; processes are started once only.
    """
    if build_hardware(config).world_size > 1:
        raise ConfigError(
            "dataset.fold: got all, which runs on one device; with several, train each fold by "
            "itself: dataset.fold=0, then 1, ….  On one GPU: trainer.devices=1."
        )
    console = rich.get_console()
    open_run = functools.cache(lambda: _run_directory(config, as_yaml, hold))
    folds = range(config.dataset.folds or 0)
    for fold in folds:
        console.print(f"\n[bold]Fold {fold + 1} of {len(folds)}[/]")
        _train_fold(config, as_yaml, fold, open_run, train_once)
    directory = open_run()
    result = _aggregate(config, directory, [directory.fold(fold) for fold in folds])
    console.print()
    console.print(_table(result, len(folds)))
    console.print(f"Everything is in {escape(str(directory.path))}.", soft_wrap=True)
    return result


def _run_directory(config: TrainConfig, as_yaml: str, hold: Callable[[Path], None]) -> RunDirectory:
    if config.resume is not None:
        return RunDirectory(config.resume.resolve())
    directory = create_run(config.runs, data_name(config.dataset), config.name)
    hold(directory.path)
    write_text(directory.config, as_yaml)
    record = {
        "command": command_line(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "launcher": launcher_id(os.environ),
        "seed": config.seed,
        "data": data_name(config.dataset),
        "versions": versions(),
    }
    write_json(directory.record, record)
    return directory


def _train_fold(
    config: TrainConfig, as_yaml: str, fold: int, open_run: OpenRun, train_once: TrainOnce
) -> None:
    resume = None
    if config.resume is not None:
        directory = open_run().fold(fold)
        if directory.metrics.is_file():
            rich.get_console().print("Finished before.")
            return
        resume = directory.path if directory.record.is_file() else None
    dataset = config.dataset.model_copy(update={"fold": fold})
    values = yaml.safe_load(as_yaml)
    values["dataset"]["fold"] = fold
    train_once(
        config.model_copy(update={"dataset": dataset, "resume": resume}),
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True),
        open_run,
    )


def _aggregate(
    config: TrainConfig, directory: RunDirectory, folds: Sequence[RunDirectory]
) -> FoldsResult:
    """Write and return what all folds say together."""
    figures = [read_figures(fold) for fold in folds]
    mean: dict[str, dict[str, float]] = {}
    deviation: dict[str, dict[str, float]] = {}
    for split in ("val", "test"):
        if all(split in values for values in figures):
            columns = _columns([values[split] for values in figures])
            mean[split] = {name: statistics.fmean(column) for name, column in columns.items()}
            deviation[split] = {name: statistics.stdev(column) for name, column in columns.items()}
    class_names = read_record(folds[0])["class_names"]
    samples, probabilities = _out_of_fold(
        directory.out_of_fold, folds, class_names, columns_of(config.dataset, config.task).separator
    )
    targets = make_targets(samples, class_names, is_multilabel=config.task == "multilabel")
    numbers = torch.tensor(probabilities)
    out_of_fold = compute_metrics(numbers, targets, class_names, task=config.task).to_dict()
    if config.evidence.resamples:
        out_of_fold["intervals"] = bootstrap_intervals(
            numbers,
            targets,
            class_names,
            task=config.task,
            groups=[sample.group for sample in samples],
            resamples=config.evidence.resamples,
            seed=config.seed,
        ).to_dict()
    if config.evidence.report:
        issues = find_issues(samples, targets, numbers, class_names, task=config.task, split="val")
        write_issues(directory.label_issues, issues)
    write_json(
        directory.metrics,
        {"folds": figures, "mean": mean, "deviation": deviation, "out_of_fold": out_of_fold},
    )
    return FoldsResult(directory.path, mean, deviation, out_of_fold)


def _columns(figures: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Collect each metric that is a number in every fold."""
    columns: dict[str, list[float]] = {}
    for name in figures[0]:
        values = [values.get(name) for values in figures]
        if name != "n" and all(
            isinstance(value, float) and math.isfinite(value) for value in values
        ):
            columns[name] = [float(value) for value in values if value is not None]
    return columns


def _out_of_fold(
    path: Path, folds: Sequence[RunDirectory], class_names: Sequence[str], separator: str | None
) -> tuple[list[Sample], list[list[float]]]:
    """Gather every validation image's prediction into one table.

    Returns:
        The images, and their probabilities in the order of ``class_names``.

    Raises:
        RunError: a fold that was finished before does not hold the answers to its images.
    """
    samples: list[Sample] = []
    probabilities: list[list[float]] = []
    rows: list[dict[str, str]] = []
    for index, fold in enumerate(folds):
        split = read_split(fold.split, label_separator=separator)
        val = [sample for sample in split if sample.split == "val"]
        try:
            with fold.predictions("val").open(encoding="utf-8", newline="") as file:
                table = list(csv.DictReader(file))
            answers = [[float(row[name]) for name in class_columns(class_names)] for row in table]
            pairs = list(zip(val, table, strict=True))
        except (OSError, KeyError, TypeError, ValueError, csv.Error):
            raise RunError(
                f"{fold.predictions('val')} does not hold the answers to the {len(val)} images of "
                f"this fold; write it anew: {typed('evaluate', run=fold.path, split='val')}"
            ) from None
        probabilities += answers
        for sample, row in pairs:
            samples.append(sample)
            true = disarm_formula(escape_undecodable("|".join(sample.labels)))
            rows.append({"path": row.pop("path"), "true_label": true, "fold": str(index), **row})
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["path"]))
    return samples, probabilities


def _table(result: FoldsResult, folds: int) -> Table:
    title = f"{folds} folds: mean, standard deviation; every image by the model that did not see it"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("metric")
    for heading in (*result.mean, "out of fold"):
        table.add_column(heading, justify="right")
    for name in result.mean["val"]:
        cells = [
            f"{result.mean[split][name]:.4f} ± {result.deviation[split][name]:.4f}"
            if name in result.mean[split]
            else "–"
            for split in result.mean
        ]
        value = result.out_of_fold.get(name)
        table.add_row(name.replace("_", " "), *cells, "–" if value is None else f"{value:.4f}")
    return table
