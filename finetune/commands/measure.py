"""Measure a model on labelled images, as ``train`` and ``evaluate`` both do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
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
from finetune.models.answers import SEPARATOR, Task, read_answers, to_probabilities
from finetune.prediction.predict import NOT_FINITE, Prediction, predict_images
from finetune.prediction.writers import open_writer
from finetune.run import replacing

MAX_ROWS = 30
"""Classes that are shown on the terminal."""

_CHUNK = 1000

AnyMetrics = Metrics | MultilabelMetrics
"""What is measured of a model with one class per image, or with any number."""


@dataclass(frozen=True)
class Answers:
    """What a model says about labelled images, in the order of ``samples``.

    Attributes:
        root: where the images' paths begin.
        samples: ``N`` images that can be read.
        targets: classes ``[N]`` int64, or with ``multilabel`` multi-hot ``[N, C]`` float32.
        logits: ``[N, C]`` float32, before any temperature.
        features: ``[N, F]`` float32, what the head reads.
        left_out: path and reason of each image that cannot be read.
    """

    root: Path
    samples: tuple[Sample, ...]
    targets: Tensor
    logits: Tensor
    features: Tensor
    left_out: Mapping[str, str]

    def probabilities(self, model: Model) -> Tensor:
        """Give ``[N, C]``, float32, at the temperature of the model."""
        return to_probabilities(self.logits, model.description.task, model.description.temperature)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.root / sample.path for sample in self.samples]

    @property
    def groups(self) -> list[str | None]:
        """The group of each image, such as a patient."""
        return [sample.group for sample in self.samples]


def answer_images(
    model: Model,
    root: Path,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: int,
    console: Console,
    may_leave_out: bool = False,
) -> Answers:
    """Ask the model about labelled images.

    Args:
        model: the bundle's.
        root: folder of the images.
        samples: labelled images; each label is one of the model's.
        batch_size: images of one forward pass.
        workers: decoding processes.
        console: for progress.
        may_leave_out: an image that cannot be read is left out, and no error.

    Raises:
        DataError: there is nothing to measure on, or an image cannot be read.
        FinetuneError: the model's answer is no number.
    """
    if not samples:
        raise DataError(f"{root}: there are no images to measure on.")
    num_classes = len(model.class_names)
    predictions = predict_images(
        [root / sample.path for sample in samples],
        model=partial(_ask, model),
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
    rows = np.empty((0, 0), np.float32)
    known: list[Sample] = []
    left_out: dict[str, str] = {}
    for sample, prediction in zip(samples, watched, strict=True):
        if prediction.features is not None:
            if not known:
                rows = np.empty((len(samples), len(prediction.features)), np.float32)
            rows[len(known)] = prediction.features
            known.append(sample)
        elif prediction.error == NOT_FINITE:
            raise FinetuneError(f"{prediction.path}: {prediction.error}.")
        elif may_leave_out:
            left_out[sample.path] = prediction.error or ""
        else:
            raise DataError(f"{prediction.path}: {prediction.error}.")
    if not known:
        raise DataError(f"{root}: none of the {len(samples)} images can be read.")
    numbers = torch.from_numpy(rows[: len(known)])
    is_multilabel = model.description.task == "multilabel"
    return Answers(
        root=root,
        samples=tuple(known),
        targets=make_targets(known, model.class_names, is_multilabel=is_multilabel),
        logits=numbers[:, :num_classes],
        features=numbers[:, num_classes:],
        left_out=left_out,
    )


def _ask(model: Model, resized: Tensor) -> tuple[Tensor, Tensor]:
    """Give probabilities, and logits beside pooled features, by one pass."""
    images = model.preprocess.normalise(resized).to(model.device)
    pooled = model.classifier.features(images.contiguous(memory_format=torch.channels_last))
    logits = model.classifier.head(pooled)
    probabilities = to_probabilities(logits, model.description.task)
    return probabilities, torch.cat([logits.float(), pooled.float()], dim=1)


def write_predictions(table: Path, model: Model, answers: Answers, order: Sequence[Sample]) -> None:
    """Write one row per image, also of those that were left out.

    Args:
        table: the file.
        model: whose names, task and temperature count.
        answers: of the images that could be read.
        order: all images.
    """
    probabilities = answers.probabilities(model)
    read = iter(
        answer
        for start in range(0, len(probabilities), _CHUNK)
        for answer in read_answers(
            probabilities[start : start + _CHUNK], model.class_names, model.description.task
        )
    )
    with (
        replacing(table) as temporary,
        open_writer(temporary, model.class_names) as writer,
    ):
        for sample in order:
            path = answers.root / sample.path
            if sample.path in answers.left_out:
                writer.write(Prediction(path, None, None, (), answers.left_out[sample.path]))
                continue
            answer = next(read)
            label = SEPARATOR.join(answer.labels)
            writer.write(Prediction(path, label, answer.probability, answer.probabilities))


def metrics_of(model: Model, answers: Answers) -> AnyMetrics:
    """Compare a model's answers with the labels."""
    return compute_metrics(
        answers.probabilities(model),
        answers.targets,
        model.class_names,
        task=model.description.task,
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
