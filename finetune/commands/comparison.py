"""A comparison on the terminal and in files."""

import csv
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.commands.verdict import amount, spread
from finetune.evaluation.report.comparison import (
    Comparison,
    Contender,
    render_comparison,
    write_duration,
)
from finetune.prediction.writers import disarm_formula, escape_undecodable
from finetune.run import replacing, write_json, write_text

STANDINGS = {
    "best": "best",
    "equal": "not distinguishable from the best",
    "worse": "worse than the best",
    "unknown": "not tested",
}


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write ``comparison.json``, ``comparison.csv`` and ``comparison.html``.

    Args:
        folder: it exists.
        comparison: what is in them.
    """
    write_json(folder / "comparison.json", asdict(comparison))
    rows = list(_rows(comparison))
    path = folder / "comparison.csv"
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    write_text(folder / "comparison.html", render_comparison(comparison))


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    pairs = {pair.other: pair for pair in comparison.pairs}
    for rank, contender in enumerate(comparison.contenders, 1):
        row: dict[str, Any] = {
            "rank": rank,
            "name": _text(contender.name),
            "standing": STANDINGS[contender.standing],
            "backbone": _text(contender.backbone),
            "image_size_px": contender.image_size_px,
            "dataset": _text(contender.dataset),
            "split": comparison.split,
            "images": contender.images,
        }
        for measure in comparison.measures:
            value = contender.metrics[measure.key]
            row[measure.key] = value.value
            row[f"{measure.key}_low"], row[f"{measure.key}_high"] = value.low, value.high
        pair = pairs.get(contender.name)
        lead = pair.advantage if pair else None
        row |= {
            "parameters": contender.parameters,
            "flops": contender.flops,
            "latency_ms": contender.latency_ms,
            "megabytes": contender.megabytes,
            "seconds": contender.seconds,
            "cost": contender.cost,
            "common_images": pair.images if pair else None,
            "lead_of_best": lead.value if lead else None,
            "lead_of_best_low": lead.low if lead else None,
            "lead_of_best_high": lead.high if lead else None,
            "p": pair.p if pair else None,
            "p_corrected": pair.p_corrected if pair else None,
            "run": _text(contender.run),
            "failure": "",
        }
        yield row
    for name, reason in comparison.failures:
        yield {"name": _text(name), "standing": "failed", "failure": _text(reason)}


def _text(text: str) -> str:
    return disarm_formula(escape_undecodable(text))


def print_comparison(comparison: Comparison, folder: Path, console: Console) -> None:
    """Show what the runs are worth, what they cost, and what may be concluded."""
    console.print()
    console.print(_worth(comparison))
    console.print()
    console.print(_costs(comparison))
    for name, reason in comparison.failures:
        console.print(f"{name}: not trained: {reason}", style="yellow", markup=False)
    console.print()
    for line in comparison.summary:
        console.print(f"[bold]{escape(line)}", soft_wrap=True)
    for pair in comparison.pairs:
        console.print(pair.text, markup=False, highlight=False, soft_wrap=True)
    for line in comparison.warnings:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    files = ", ".join(str(folder / f"comparison.{kind}") for kind in ("html", "csv", "json"))
    console.print(f"Written: {files}", markup=False, highlight=False, soft_wrap=True)


def _worth(comparison: Comparison) -> Table:
    counts = sorted({contender.images for contender in comparison.contenders})
    images = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    table = _table(f"{images} images of {comparison.split}; in brackets, the 95 % interval")
    headline, *others = comparison.measures
    table.add_column("run")
    table.add_column(headline.name, justify="right", no_wrap=True)
    for measure in others:
        table.add_column(measure.name, justify="right")
    table.add_column("")
    for contender in comparison.contenders:
        values = [contender.metrics[measure.key].value for measure in others]
        table.add_row(
            escape(contender.name),
            spread(contender.metrics[headline.key], headline),
            *(
                "–" if value is None else amount(value, measure).replace(" ", "\u00a0")
                for value, measure in zip(values, others, strict=True)
            ),
            {"best": "best", "equal": "≈\u00a0best", "worse": "", "unknown": "?"}[
                contender.standing
            ],
        )
    return table


def _costs(comparison: Comparison) -> Table:
    table = _table("What they cost: one image, and the training")
    contenders = comparison.contenders
    columns: dict[str, list[str]] = {
        "run": [escape(contender.name) for contender in contenders],
        "backbone": [escape(contender.backbone) for contender in contenders],
        "px": [str(contender.image_size_px) for contender in contenders],
        "parameters": [f"{contender.parameters / 1e6:.1f} M" for contender in contenders],
        "GFLOPs": [f"{contender.flops / 1e9:.2f}" for contender in contenders],
        "ms": [_number(contender.latency_ms) for contender in contenders],
        "MB": [_number(contender.megabytes) for contender in contenders],
        "training": [write_duration(contender.seconds) for contender in contenders],
    }
    if comparison.price_per_hour is not None:
        columns["cost"] = [_price(contender) for contender in contenders]
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("run", "backbone") else "right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _price(contender: Contender) -> str:
    """Write the cost of a training; unknown is ``–``."""
    return "–" if contender.cost is None else f"{contender.cost:.2f}"
