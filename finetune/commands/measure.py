"""Measure a model on labelled images, as ``train`` and ``evaluate`` both do."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from finetune.data.discover import Sample
from finetune.errors import DataError
from finetune.evaluation.metrics import Metrics, classification_metrics
from finetune.exports.bundle import Model
from finetune.prediction.predict import Prediction, predict_images
from finetune.prediction.writers import open_writer


def measure(
    model: Model,
    root: Path,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: int,
    table: Path | None,
    console: Console,
) -> Metrics:
    """Predict labelled images and compare with their labels.

    Args:
        model: the bundle's.
        root: folder of the images.
        samples: labelled images; each class is one of the model's.
        batch_size: images of one forward pass.
        workers: decoding processes.
        table: where the predictions go, one row per image; None for nowhere.
        console: for progress.

    Raises:
        DataError: there is nothing to measure on, or an image cannot be read.
    """
    if not samples:
        raise DataError(f"{root}: there are no images to measure on.")
    predictions = predict_images(
        [root / sample.path for sample in samples],
        model=model.probabilities,
        preprocess_resize=model.preprocess.resize,
        class_names=model.class_names,
        batch_size=batch_size,
        workers=workers,
        max_megapixels=model.description.max_megapixels,
    )
    watched = track(
        predictions,
        description="Measuring",
        total=len(samples),
        console=console,
        transient=True,
        disable=console.quiet,
    )
    rows = []
    for prediction in watched:
        if prediction.error is not None:
            raise DataError(f"{prediction.path} cannot be read: {prediction.error}.")
        rows.append(prediction)
    if table is not None:
        _write(table, rows, model.class_names)
    labels = [model.class_names.index(sample.class_name) for sample in samples]
    return classification_metrics(
        torch.tensor([row.probabilities for row in rows]),
        torch.tensor(labels),
        model.class_names,
    )


def metrics_table(metrics: Metrics, title: str) -> Table:
    """Lay the main figures and the classes out for the terminal."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("class", "images", "precision", "recall", "F1"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for row in metrics.per_class[:30]:
        values = (row.precision, row.recall, row.f1)
        table.add_row(_literal(row.name), str(row.support), *(percent(value) for value in values))
    if len(metrics.per_class) > 30:
        table.add_row(f"… {len(metrics.per_class) - 30} more", "", "", "", "")
    return table


def headline(metrics: Metrics) -> str:
    """Say the main figures in one line."""
    parts = [
        f"accuracy {percent(metrics.accuracy)}",
        f"balanced accuracy {percent(metrics.balanced_accuracy)}",
        f"macro F1 {percent(metrics.macro_f1)}",
        f"AUROC {'undefined' if metrics.auroc is None else f'{metrics.auroc:.3f}'}",
    ]
    if metrics.positive_class is not None:
        positive = _literal(metrics.positive_class)
        parts.append(f"sensitivity {percent(metrics.sensitivity)} (of {positive})")
        parts.append(f"specificity {percent(metrics.specificity)}")
    return ", ".join(parts)


def percent(value: float | None) -> str:
    """Write a fraction as a percentage with one decimal; undefined is said."""
    return "undefined" if value is None else f"{100 * value:.1f} %"


def _literal(name: str) -> str:
    """Keep Rich from reading markup in a class name."""
    return name.replace("[", r"\[")


def _write(path: Path, rows: Sequence[Prediction], class_names: Sequence[str]) -> None:
    with open_writer(path, class_names) as writer:
        for row in rows:
            writer.write(row)
