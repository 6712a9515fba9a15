"""What a classifier with one class per image gets right.

Shapes: ``N`` images, ``C`` classes. What is undefined follows `finetune.evaluation.scores`;
absent classes are listed in ``absent_classes``, and those with true images but no prediction in
``never_predicted_classes``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from finetune.errors import DataError, FinetuneError
from finetune.evaluation.reliability import expected_calibration_error
from finetune.evaluation.scores import (
    ClassMetrics,
    Counts,
    class_aurocs,
    class_average_precisions,
    class_scores,
    describe_classes,
    number,
)
from finetune.models.answers import as_hot

# How far a row of probabilities may be from a sum of one: a softmax in bfloat16 is off by 1 %.
_SUM_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good a classifier is on ``n`` labelled images.

    Every score is a fraction in [0, 1] where nothing else is said, ``None`` where undefined.

    Attributes:
        accuracy: share of images whose most probable class is the true one.
        top5_accuracy: the same among the five most probable; ``None`` up to five classes.
            Equal probabilities rank in class order.
        balanced_accuracy: mean recall over the classes present.
        macro_precision: mean precision over the classes present and predicted at least once.
        macro_recall: equal to ``balanced_accuracy``; both names are common.
        macro_f1: mean F1 over the classes present.
        auroc: two classes: of the second class. More: macro one-versus-rest mean over the
            classes that have both positives and negatives.
        mean_average_precision: macro one-versus-rest mean over the same classes, also of two.
        log_loss: mean of -log p(true class), in nats per image, >= 0; p is clipped to 2.2e-16,
            so that one certain mistake costs 36 nats and not infinity.
        brier_score: mean over the images of the squared distance between the probabilities and
            the truth (1 for the true class, else 0), summed over the classes: 0 is perfect, 2 is
            certain and wrong everywhere. Of two classes, others report half of it.
        expected_calibration_error: see `finetune.evaluation.reliability`.
        cohen_kappa: agreement beyond chance, in [-1, 1]; 0 is chance. ``None`` where truth and
            prediction are one and the same class throughout, as chance is then certain.
        matthews_correlation: correlation of truth and prediction, in [-1, 1]; 0 is chance.
            ``None`` where all images have one true class or one predicted class: a constant
            correlates with nothing (scikit-learn says 0).
        positive_class: two classes: the second name, the one that ``sensitivity`` is about.
        sensitivity: two classes: recall of ``positive_class``.
        specificity: two classes: recall of the other class.
        absent_classes: names of classes without a true image.
        never_predicted_classes: names of classes with true images but no prediction.
        per_class: one row per class, in class order.
        confusion_matrix: images counted as ``[true][predicted]``.
    """

    n: int
    accuracy: float
    top5_accuracy: float | None
    balanced_accuracy: float | None
    macro_precision: float | None
    macro_recall: float | None
    macro_f1: float | None
    auroc: float | None
    mean_average_precision: float | None
    log_loss: float
    brier_score: float
    expected_calibration_error: float
    cohen_kappa: float | None
    matthews_correlation: float | None
    positive_class: str | None
    sensitivity: float | None
    specificity: float | None
    absent_classes: tuple[str, ...]
    never_predicted_classes: tuple[str, ...]
    per_class: tuple[ClassMetrics, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values: dicts, lists, strings, finite numbers and ``None``."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain


def classification_metrics(
    probabilities: Tensor, labels: Tensor, class_names: Sequence[str]
) -> Metrics:
    """Measure a classifier on labelled images.

    Args:
        probabilities: ``[N, C]`` floating, rows sum to one; any device.
        labels: ``[N]`` int64 in ``[0, C)``.
        class_names: ``C`` names, at least two, in the order of the columns.

    Raises:
        DataError: there is no image.
        FinetuneError: a probability is not finite.
        ValueError: the shapes or ranges do not fit each other.
    """
    probabilities, labels = probabilities.detach().cpu().double(), labels.detach().cpu()
    _check(probabilities, labels, class_names)
    n, num_classes = probabilities.shape
    confusion = multiclass_confusion_matrix(probabilities.argmax(1), labels, num_classes)
    tp, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    fp, fn = predicted - tp, support - tp
    counts = Counts(tp, fp, fn, tn=n - tp - fp - fn)
    scores = class_scores(counts)
    is_true = as_hot(labels, num_classes)
    aurocs = class_aurocs(probabilities, is_true)
    precisions = class_average_precisions(probabilities, is_true)
    is_present = support > 0
    is_binary = num_classes == 2
    return Metrics(
        n=n,
        accuracy=int(tp.sum()) / n,
        top5_accuracy=(
            float(are_in_top5(probabilities, labels).double().mean()) if num_classes > 5 else None
        ),
        balanced_accuracy=number(scores.recall.nanmean()),
        macro_precision=number(scores.precision[is_present].nanmean()),
        macro_recall=number(scores.recall.nanmean()),
        macro_f1=number(scores.f1.nanmean()),
        auroc=number(aurocs[1] if is_binary else aurocs.nanmean()),
        mean_average_precision=number(precisions.nanmean()),
        log_loss=float(log_losses(probabilities, labels).mean()),
        brier_score=float((probabilities - is_true.double()).square().sum(1).mean()),
        expected_calibration_error=expected_calibration_error(probabilities, labels, "multiclass"),
        cohen_kappa=number(cohen_kappa(counts)),
        matthews_correlation=number(matthews_correlation(counts)),
        positive_class=class_names[1] if is_binary else None,
        sensitivity=number(scores.recall[1]) if is_binary else None,
        specificity=number(scores.specificity[1]) if is_binary else None,
        absent_classes=_names_where(~is_present, class_names),
        never_predicted_classes=_names_where(is_present & (predicted == 0), class_names),
        per_class=describe_classes(class_names, counts, aurocs, precisions),
        confusion_matrix=tuple(tuple(row) for row in confusion.tolist()),
    )


def log_losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Give -log p(true class) of each image in nats: ``[N, C]`` and ``[N]`` to ``[N]``."""
    of_true = probabilities.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    return -of_true.clamp(torch.finfo(torch.float64).eps, 1).log()


def are_in_top5(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Tell whose true class is among the five most probable: ``[N, C]`` and ``[N]`` to ``[N]``."""
    true_class = labels.long().unsqueeze(1)
    of_true = probabilities.gather(1, true_class)
    is_earlier = torch.arange(probabilities.shape[1]) < true_class
    is_before = (probabilities > of_true) | ((probabilities == of_true) & is_earlier)
    return is_before.sum(1) < 5


def cohen_kappa(counts: Counts) -> Tensor:
    """Give the agreement beyond chance; ``[C, ...]`` to ``[...]``, NaN where undefined.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    images, right, truth, given = _margins(counts)
    by_chance = (truth * given).sum(0)
    return (images * right - by_chance) / (images.square() - by_chance)


def matthews_correlation(counts: Counts) -> Tensor:
    """Give the correlation of truth and prediction; ``[C, ...]`` to ``[...]``, NaN: undefined.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient"; of two classes it is Matthews' (1975).
    """
    images, right, truth, given = _margins(counts)
    spread_of_truth = images.square() - truth.square().sum(0)
    spread_of_given = images.square() - given.square().sum(0)
    covariance = images * right - (truth * given).sum(0)
    return covariance / (spread_of_truth.sqrt() * spread_of_given.sqrt())


def _margins(counts: Counts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count all images, those that are right, and those of each class by truth and prediction."""
    tp, fp, fn, tn = (value.double() for value in counts)
    return (tp + fp + fn + tn)[0], tp.sum(0), tp + fn, tp + fp


def _check(probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    num_classes = len(class_names)
    if num_classes < 2:
        raise ValueError(f"class_names: got {num_classes}, expected at least two.")
    if probabilities.ndim != 2 or probabilities.shape[1] != num_classes:
        raise ValueError(
            f"probabilities: got shape {list(probabilities.shape)}, expected [N, {num_classes}]."
        )
    if labels.shape != probabilities.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels: got shape {list(labels.shape)} of {labels.dtype}, "
            f"expected [{len(probabilities)}] of torch.int64."
        )
    if not len(labels):
        raise DataError("Got no image to evaluate, expected at least one with a known class.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels: got {int(labels.min())} to {int(labels.max())}, "
            f"expected 0 to {num_classes - 1}."
        )
    if not probabilities.isfinite().all():
        broken = int((~probabilities.isfinite()).any(1).sum())
        raise FinetuneError(
            f"The model answered {broken} of {len(labels)} images with NaN or infinity, expected "
            "probabilities. Its weights have probably diverged: train with a lower learning rate."
        )
    is_sum_one = ((probabilities.sum(1) - 1).abs() < _SUM_TOLERANCE).all()
    if not is_sum_one or probabilities.min() < 0:
        raise ValueError("probabilities: rows do not sum to one; pass logits through softmax.")


def _names_where(mask: Tensor, class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(class_names[index] for index in mask.nonzero().flatten().tolist())
