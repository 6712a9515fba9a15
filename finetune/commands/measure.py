"""Measure a model on labelled images, as ``train`` and ``evaluate`` both do."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from finetune.data.discover import Sample
from finetune.data.labelled_images import make_targets
from finetune.errors import DataError, FinetuneError
from finetune.evaluation.metrics import Metrics, classification_metrics
from finetune.evaluation.multilabel import MultilabelMetrics, multilabel_metrics
from finetune.evaluation.plots import plot_confusion_matrix, plot_labels
from finetune.exports.bundle import Model
from finetune.models.answers import Task
from finetune.prediction.predict import NOT_FINITE, Prediction, predict_images
from finetune.prediction.writers import open_writer

MAX_ROWS = 30
"""Classes that are shown on the terminal."""

AnyMetrics = Metrics | MultilabelMetrics
"""What is measured of a model with one class per image, or with any number."""


def measure(
    model: Model,
    root: Path,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: int,
    table: Path | None,
    console: Console,
    left_out: dict[str, str] | None = None,
    answers: dict[Path, Tensor] | None = None,
) -> AnyMetrics:
    """Predict labelled images and compare with their labels.

    Args:
        model: the bundle's.
        root: folder of the images.
        samples: labelled images; each label is one of the model's.
        batch_size: images of one forward pass.
        workers: decoding processes.
        table: where the predictions go, one row per image; None for nowhere.
        console: for progress.
        left_out: gets the path and the reason of each image that cannot be read; None for none
            may be.
        answers: gets the probabilities ``[C]`` of each file; None where nobody asks.

    Raises:
        DataError: there is nothing to measure on, or an image cannot be read.
        FinetuneError: the model's answer is no number.
    """
    if not samples:
        raise DataError(f"{root}: there are no images to measure on.")
    predictions = predict_images(
        [root / sample.path for sample in samples],
        model=model.probabilities,
        preprocess_resize=model.preprocess.resize,
        class_names=model.class_names,
        task=model.description.task,
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
        disable=console.quiet or not console.is_terminal,
    )
    rows, known = [], []
    for sample, prediction in zip(samples, watched, strict=True):
        rows.append(prediction)
        if prediction.error is None:
            known.append((sample, prediction.probabilities))
            if answers is not None:
                answers[prediction.path] = torch.tensor(prediction.probabilities)
        elif prediction.error == NOT_FINITE:
            raise FinetuneError(f"{prediction.path}: {prediction.error}.")
        elif left_out is None:
            raise DataError(f"{prediction.path}: {prediction.error}.")
        else:
            left_out[sample.path] = prediction.error
    if not known:
        raise DataError(f"{root}: none of the {len(samples)} images can be read.")
    if table is not None:
        _write(table, rows, model.class_names)
    task = model.description.task
    readable = [sample for sample, _ in known]
    return compute_metrics(
        torch.tensor([probabilities for _, probabilities in known]),
        make_targets(readable, model.class_names, is_multilabel=task == "multilabel"),
        model.class_names,
        task=task,
    )


def compute_metrics(
    probabilities: Tensor, targets: Tensor, class_names: Sequence[str], *, task: Task
) -> AnyMetrics:
    """Compare probabilities ``[N, C]`` with classes ``[N]`` or multi-hot labels ``[N, C]``."""
    if task == "multilabel":
        return multilabel_metrics(probabilities, targets, class_names)
    return classification_metrics(probabilities, targets, class_names)


def metrics_table(metrics: AnyMetrics, title: str) -> Table:
    """Lay the classes' figures out for the terminal; AP is average precision."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("class", "images", "precision", "recall", "F1", "AP"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for row in metrics.per_class[:MAX_ROWS]:
        scores = (row.precision, row.recall, row.f1, row.average_precision)
        table.add_row(_literal(row.name), str(row.support), *map(percent, scores))
    if len(metrics.per_class) > MAX_ROWS:
        table.add_row(f"… {len(metrics.per_class) - MAX_ROWS} more")
    return table


def monitored(metrics: AnyMetrics, monitor: str) -> float | None:
    """Give the value of ``dataset.monitor``; None where undefined, or not among the figures."""
    name = "log_loss" if monitor == "loss" else monitor
    if isinstance(metrics, MultilabelMetrics) and monitor == "accuracy":
        name = "exact_match"
    value: float | None = getattr(metrics, name, None)
    return value


def headline(metrics: AnyMetrics) -> str:
    """Say the main figures in one line."""
    auroc = f"AUROC {'undefined' if metrics.auroc is None else f'{metrics.auroc:.3f}'}"
    if isinstance(metrics, MultilabelMetrics):
        parts = [
            f"mean average precision {percent(metrics.mean_average_precision)}",
            f"macro F1 {percent(metrics.macro_f1)}",
            f"micro F1 {percent(metrics.micro_f1)}",
            auroc,
            f"all labels right in {percent(metrics.exact_match)} of the images",
        ]
        return ", ".join(parts)
    parts = [
        f"accuracy {percent(metrics.accuracy)}",
        f"balanced accuracy {percent(metrics.balanced_accuracy)}",
        f"macro F1 {percent(metrics.macro_f1)}",
        auroc,
    ]
    if metrics.positive_class is not None:
        positive = _literal(metrics.positive_class)
        parts.append(f"sensitivity {percent(metrics.sensitivity)} (of {positive})")
        parts.append(f"specificity {percent(metrics.specificity)}")
    return ", ".join(parts)


def plot_metrics(metrics: AnyMetrics, path: Path) -> None:
    """Draw the confusion matrix, or for any number of labels how well each is found, as PNG."""
    if isinstance(metrics, MultilabelMetrics):
        plot_labels(metrics.per_class, path)
    else:
        names = [row.name for row in metrics.per_class]
        plot_confusion_matrix(metrics.confusion_matrix, names, path)


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
