"""What temperature, prediction sets and abstention promise, and what other images get.

    .venv/bin/python benchmarks/calibration.py RUN … [--group-pattern REGEX]

Reads the tables of predictions of finished runs with one class per image, and trains nothing. Of
the validation images, a random half calibrates all three and the other half judges them, again and
again; then all of them calibrate, and the test images judge, where a run has any.

Logits are the logarithms of the probabilities times the model's temperature: what a softmax turns
into the same probabilities.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import show, table
from torch import Tensor
from torch.nn import functional

from finetune.data.split_file import read_split
from finetune.data.splits import group_by_pattern
from finetune.evaluation.abstention import apply_threshold, choose_threshold
from finetune.evaluation.conformal import (
    SetReport,
    cross_fitted_coverage,
    describe_sets,
    expected_range,
    fit_sets,
    is_reliable,
)
from finetune.evaluation.reliability import expected_calibration_error
from finetune.evaluation.temperature import calibrate
from finetune.models.answers import to_probabilities

ROUNDS = 200
COVERAGES = (0.8, 0.9, 0.95, 0.98, 0.99)
NOTE = f"""Halves of val: {ROUNDS} random ones; the mean, in brackets where 95 % of them lie. \
Log loss in nats per image; ECE is the expected calibration error of 15 bins."""


@dataclass(frozen=True)
class Answered:
    """Logits ``[N, C]``, true classes ``[N]`` and groups of the images of a split."""

    logits: Tensor
    targets: Tensor
    groups: list[str | None]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Tensor) -> "Answered":
        groups = [self.groups[row] for row in rows.tolist()]
        return Answered(self.logits[rows], self.targets[rows], groups)

    def probabilities(self, temperature: float) -> Tensor:
        """Give ``[N, C]``."""
        return to_probabilities(self.logits, "multiclass", temperature)


def main() -> None:
    """Print three tables for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="directory of a finished run")
    add("--group-pattern", metavar="REGEX", help="images of one group are never parted")
    add("--write", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()
    parts = [part_of(run, arguments.group_pattern) for run in arguments.runs]
    show("Calibration", "\n\n".join([NOTE, *parts]), writes=arguments.write)


def part_of(run: Path, pattern: str | None) -> str:
    """Measure one run and write its tables."""
    val, test = read_answers(run, "val", pattern), read_answers(run, "test", pattern)
    halves = [split_in_two(val, seed) for seed in range(ROUNDS)]
    temperatures = [fitted(one) for one, _ in halves]
    right = float((val.logits.argmax(1) == val.targets).double().mean())
    groups = len({name for name in val.groups if name}) + val.groups.count(None)
    title = f"### {run.parent.name}/{run.name}: {len(val):,} images of val, {right:.1%} right"
    if groups < len(val):
        title += f", {groups:,} groups"
    return "\n\n".join(
        [
            title,
            temperature_table(val, test, halves, temperatures),
            sets_table(val, test, halves, temperatures),
            abstention_table(val, test, halves, temperatures),
        ]
    )


def read_answers(run: Path, split: str, pattern: str | None) -> Answered | None:
    """Read the table of predictions of a split; None where there is none."""
    file = run / f"predictions_{split}.csv"
    if not file.is_file():
        return None
    description = json.loads((run / "model.json").read_text(encoding="utf-8"))
    names = description["class_names"]
    samples = read_split(run / "split.csv")
    samples = samples if pattern is None else group_by_pattern(samples, pattern)
    known = {sample.path: sample for sample in samples}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if not row["error"]]
    found = [known[relative(row["path"], known)] for row in rows]
    columns = [name for name in rows[0] if name.startswith("p_")]
    numbers = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    logits = numbers.double().clamp(min=1e-30).log() * description["temperature"]
    targets = torch.tensor([names.index(sample.labels[0]) for sample in found])
    return Answered(logits, targets, [sample.group for sample in found])


def relative(path: str, known: dict[str, object]) -> str:
    """Find the end of a path that the split knows."""
    parts = Path(path).parts
    ends = ["/".join(parts[first:]) for first in range(len(parts))]
    return next(end for end in ends if end in known)


def split_in_two(answered: Answered, seed: int) -> tuple[Answered, Answered]:
    """Part images at random, groups whole."""
    units = [name or index for index, name in enumerate(answered.groups)]
    rng = np.random.default_rng(seed)
    distinct = list(dict.fromkeys(units))
    first = {distinct[place] for place in rng.permutation(len(distinct))[: len(distinct) // 2]}
    is_first = torch.tensor([unit in first for unit in units])
    return answered[is_first.nonzero().flatten()], answered[(~is_first).nonzero().flatten()]


def fitted(answered: Answered) -> float:
    """Give the temperature that a training would store."""
    return calibrate(
        answered.logits, answered.targets, task="multiclass", groups=answered.groups
    ).temperature


def temperature_table(
    val: Answered,
    test: Answered | None,
    halves: Sequence[tuple[Answered, Answered]],
    temperatures: Sequence[float],
) -> str:
    """Write log loss and ECE before and after the temperature."""
    found = calibrate(val.logits, val.targets, task="multiclass", groups=val.groups)
    pairs = [judge(half, at) for (_, half), at in zip(halves, temperatures, strict=True)]
    columns = list(zip(*pairs, strict=True))
    rows = [["halves of val", spread(temperatures, "{:.2f}"), *cells(columns)]]
    if found.log_loss_after is not None:
        after = [
            [value or 0.0]
            for value in (
                found.log_loss_before,
                found.log_loss_after,
                found.ece_before,
                found.ece_after,
            )
        ]
        rows.append(["val, cross-fitted", f"{found.temperature:.2f}", *cells(after)])
    if test is not None:
        values = [[value] for value in judge(test, found.temperature)]
        rows.append([f"test, {len(test):,} images", f"{found.temperature:.2f}", *cells(values)])
    headings = ("judged by", "temperature", "log loss", "after", "ECE, %", "after")
    return f"{table(headings, rows)}\n\n{found.reason}"


def judge(answered: Answered, temperature: float) -> tuple[float, float, float, float]:
    """Give log loss before and after, and ECE before and after."""
    losses = [
        float(functional.cross_entropy(answered.logits / at, answered.targets))
        for at in (1.0, temperature)
    ]
    errors = [
        expected_calibration_error(answered.probabilities(at), answered.targets, "multiclass")
        for at in (1.0, temperature)
    ]
    return losses[0], losses[1], errors[0], errors[1]


def cells(columns: Sequence[Sequence[float]]) -> list[str]:
    """Write two columns of losses, and two of shares."""
    return [
        spread([scale * value for value in values], shape)
        for values, scale, shape in zip(
            columns, (1, 1, 100, 100), ("{:.4f}", "{:.4f}", "{:.2f}", "{:.2f}"), strict=True
        )
    ]


def sets_table(
    val: Answered,
    test: Answered | None,
    halves: Sequence[tuple[Answered, Answered]],
    temperatures: Sequence[float],
) -> str:
    """Write how often sets hold the true class, for each coverage that is asked."""
    rows = []
    for coverage in COVERAGES:
        reports: list[SetReport] = []
        for (one, other), at in zip(halves, temperatures, strict=True):
            rule = fit_sets(one.probabilities(at), one.targets, coverage=coverage)
            if rule is not None:
                reports.append(describe_sets(other.probabilities(at), other.targets, rule))
        if len(reports) < len(halves):
            rows.append([f"{coverage:.0%}", *["too few images"] * 5, on_test(val, test, coverage)])
            continue
        right = np.mean([float(one.is_above_by_accuracy) for one in reports])
        folds = cross_fitted_coverage(
            val.probabilities(1.0), val.targets, coverage=coverage, groups=val.groups
        )
        rows.append(
            [
                f"{coverage:.0%}",
                spread([100 * one.coverage for one in reports], "{:.1f}"),
                "the accuracy" if right > 0.5 else expected(len(halves[0][0]), coverage),
                f"{np.mean([one.mean_size for one in reports]):.2f}",
                f"{100 * np.mean([one.share_single for one in reports]):.1f}",
                "–" if folds is None else f"{100 * folds:.1f}",
                on_test(val, test, coverage),
            ]
        )
    headings = (
        "coverage asked",
        "on the other half, %",
        "expected there, %",
        "classes in a set",
        "sets of one, %",
        "val, cross-fitted, %",
        "on test, %",
    )
    return table(headings, rows)


def expected(images: int, coverage: float) -> str:
    """Say between which coverages many new images would lie."""
    low, high = expected_range(images, coverage)
    note = "" if is_reliable(images, coverage) else ", unreliable"
    return f"{100 * low:.1f}–{100 * high:.1f}{note}"


def on_test(val: Answered, test: Answered | None, coverage: float) -> str:
    """Give the coverage of the test images by the sets of all of val."""
    at = fitted(val)
    rule = fit_sets(val.probabilities(at), val.targets, coverage=coverage)
    if test is None or rule is None:
        return "–"
    report = describe_sets(test.probabilities(at), test.targets, rule)
    return f"{100 * report.coverage:.1f} ({report.mean_size:.2f} classes)"


def abstention_table(
    val: Answered,
    test: Answered | None,
    halves: Sequence[tuple[Answered, Answered]],
    temperatures: Sequence[float],
) -> str:
    """Write what is left wrong where half of the error was to be left out."""
    judged = [("halves of val", *pair, at) for pair, at in zip(halves, temperatures, strict=True)]
    lines = {"halves of val": judged}
    if test is not None:
        lines["test"] = [("test", val, test, fitted(val))]
    rows = []
    for name, pairs in lines.items():
        figures, answered = [], 0
        for _, one, other, at in pairs:
            chosen = choose_threshold(*sureness(one, at), max_error=None)
            if chosen is None or chosen.error is None:
                continue
            there = apply_threshold(*sureness(other, at), chosen.threshold)
            answered += 1
            figures.append(
                (
                    chosen.error_without,
                    chosen.error,
                    there.error_without,
                    there.error or 0.0,
                    1 - there.coverage,
                )
            )
        share = f"{answered} of {len(pairs)}"
        columns = list(zip(*figures, strict=True)) or [[]] * 5
        rows.append([name, share, *(percents(values) for values in columns)])
    headings = (
        "judged by",
        "with a threshold",
        "error of all, %",
        "of the answered, %",
        "there: of all, %",
        "there: of the answered, %",
        "there: left out, %",
    )
    return table(headings, rows)


def sureness(answered: Answered, temperature: float) -> tuple[Tensor, Tensor]:
    """Give how sure each answer is, and whether it is right."""
    sure, given = answered.probabilities(temperature).max(1)
    return sure, given == answered.targets


def percents(values: Sequence[float]) -> str:
    """Write shares as percentages."""
    return spread([100 * value for value in values], "{:.1f}") if values else "–"


def spread(values: Sequence[float], shape: str) -> str:
    """Write the mean, and where 95 % of several values lie."""
    mean = shape.format(float(np.mean(values)))
    if len(values) == 1:
        return mean
    low, high = (shape.format(float(one)) for one in np.quantile(values, (0.025, 0.975)))
    return f"{mean} ({low}–{high})"


if __name__ == "__main__":
    main()
