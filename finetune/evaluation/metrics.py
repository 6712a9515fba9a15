"""What a classifier gets right, counted by one rule in training, evaluation and the report.

Shapes: ``N`` images, ``C`` classes.

The rule for what is undefined:

- A class without a true image is *absent*. Its recall, F1 and AUROC are undefined, it is left
  out of every macro mean, and it is listed in ``absent_classes``.
- A class with true images that is never predicted has no precision. It is left out of the mean
  of precisions and listed in ``never_predicted_classes``; its recall and F1 are 0 by definition
  (F1 = 2 TP / (2 TP + FP + FN)).
- Undefined numbers are ``None``, never 0 or 1.

This equals scikit-learn with ``labels=<classes present>`` and ``zero_division=np.nan``
(F1: ``zero_division=0``). torchmetrics' own macro means differ: they count a class that is
predicted but has no true image as 0, and they report 0 for what is undefined.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassStatScores
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_confusion_matrix,
)

from finetune.errors import DataError, FinetuneError

# How far a row of probabilities may be from a sum of one: a softmax in bfloat16 is off by 1 %.
_SUM_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class's share; fractions in [0, 1], ``None`` where undefined (see the module)."""

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good a classifier is on ``n`` labelled images.

    Every score is a fraction in [0, 1], ``None`` where undefined (see the module). ``log_loss``
    is in nats per image, >= 0.

    Attributes:
        accuracy: share of images whose most probable class is the true one.
        top5_accuracy: the same among the five most probable; ``None`` up to five classes.
        balanced_accuracy: mean recall over the classes present.
        macro_precision: mean precision over the classes present and predicted at least once.
        macro_recall: equal to ``balanced_accuracy``; both names are common.
        macro_f1: mean F1 over the classes present.
        auroc: two classes: of the second class. More: macro one-versus-rest mean over the
            classes that have both positives and negatives.
        log_loss: mean of -log p(true class); p is clipped to 2.2e-16, so that one certain
            mistake costs 36 nats and not infinity.
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
    log_loss: float
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


class ClassScores(NamedTuple):
    """Scores per class, each ``[C]`` float64, NaN where undefined."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


def class_scores(tp: Tensor, fp: Tensor, fn: Tensor) -> ClassScores:
    """Turn counts into scores per class; NaN where undefined (see the module).

    Args:
        tp: true positives per class, ``[C]``.
        fp: false positives per class, ``[C]``.
        fn: false negatives per class, ``[C]``.
    """
    # MPS has no float64, and float32 is exact up to 16 million images of one class.
    dtype = torch.float32 if tp.device.type == "mps" else torch.float64
    tp, fp, fn = tp.to(dtype), fp.to(dtype), fn.to(dtype)
    is_present = tp + fn > 0
    f1 = torch.where(is_present, 2 * tp / (2 * tp + fp + fn), math.nan)
    return ClassScores(precision=tp / (tp + fp), recall=tp / (tp + fn), f1=f1)


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
    scores = class_scores(tp, fp=predicted - tp, fn=support - tp)
    aurocs = _aurocs(probabilities, labels, support)
    is_present = support > 0
    is_binary = num_classes == 2
    return Metrics(
        n=n,
        accuracy=int(tp.sum()) / n,
        top5_accuracy=(
            multiclass_accuracy(probabilities, labels, num_classes, "micro", top_k=5).item()
            if num_classes > 5
            else None
        ),
        balanced_accuracy=_number(scores.recall.nanmean()),
        macro_precision=_number(scores.precision[is_present].nanmean()),
        macro_recall=_number(scores.recall.nanmean()),
        macro_f1=_number(scores.f1.nanmean()),
        auroc=_number(aurocs[1] if is_binary else aurocs.nanmean()),
        log_loss=_log_loss(probabilities, labels),
        positive_class=class_names[1] if is_binary else None,
        sensitivity=_number(scores.recall[1]) if is_binary else None,
        specificity=_number(scores.recall[0]) if is_binary else None,
        absent_classes=_names_where(~is_present, class_names),
        never_predicted_classes=_names_where(is_present & (predicted == 0), class_names),
        per_class=_per_class(class_names, support, predicted, scores, aurocs),
        confusion_matrix=tuple(tuple(row) for row in confusion.tolist()),
    )


# The three share their counts and so form one compute group: each batch is counted once.
class Accuracy(MulticlassStatScores):
    """Share of images whose most probable class is the true one."""

    def compute(self) -> Tensor:
        """Give the accuracy over everything counted so far, a scalar."""
        tp, _, _, fn = self._final_state()
        return tp.sum() / (tp + fn).sum()


class BalancedAccuracy(MulticlassStatScores):
    """Mean recall over the classes present."""

    def compute(self) -> Tensor:
        """Give the mean recall over everything counted so far, a scalar."""
        tp, fp, _, fn = self._final_state()
        return class_scores(tp, fp, fn).recall.nanmean().float()


class MacroF1(MulticlassStatScores):
    """Mean F1 over the classes present."""

    def compute(self) -> Tensor:
        """Give the mean F1 over everything counted so far, a scalar."""
        tp, fp, _, fn = self._final_state()
        return class_scores(tp, fp, fn).f1.nanmean().float()


def training_metrics(num_classes: int) -> MetricCollection:
    """Make the metrics that a training loop updates batch by batch.

    ``update(logits [B, C], labels [B] int64)`` stays on the device; ``compute()`` sums
    the counts over all processes and gives scalars named ``accuracy``, ``balanced_accuracy`` and
    ``macro_f1``, equal to those of ``classification_metrics``. ``clone(prefix="val_")`` renames.

    Args:
        num_classes: >= 2.
    """
    arguments: dict[str, Any] = {"num_classes": num_classes, "average": None}
    # Argument checks read the labels back from the device in every step.
    arguments["validate_args"] = False
    return MetricCollection(
        {
            "accuracy": Accuracy(**arguments),
            "balanced_accuracy": BalancedAccuracy(**arguments),
            "macro_f1": MacroF1(**arguments),
        }
    )


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


def _aurocs(probabilities: Tensor, labels: Tensor, support: Tensor) -> Tensor:
    """Give the one-versus-rest AUROC per class, ``[C]``; NaN without positives or negatives."""
    aurocs = torch.full(support.shape, math.nan, dtype=torch.float64)
    # torchmetrics takes scores outside [0, 1] for logits, and bfloat16 rows may hold 1.004.
    scores = probabilities.clamp(0, 1)
    # torchmetrics' own macro mean counts an undefined class as 0.
    for index in ((support > 0) & (support < len(labels))).nonzero().flatten().tolist():
        aurocs[index] = binary_auroc(scores[:, index], (labels == index).long())
    return aurocs


def _log_loss(probabilities: Tensor, labels: Tensor) -> float:
    of_true = probabilities.gather(1, labels.long().unsqueeze(1))
    return float(-of_true.clamp(torch.finfo(torch.float64).eps, 1).log().mean())


def _per_class(
    class_names: Sequence[str],
    support: Tensor,
    predicted: Tensor,
    scores: ClassScores,
    aurocs: Tensor,
) -> tuple[ClassMetrics, ...]:
    return tuple(
        ClassMetrics(
            name=name,
            support=int(support[index]),
            predicted=int(predicted[index]),
            precision=_number(scores.precision[index]),
            recall=_number(scores.recall[index]),
            f1=_number(scores.f1[index]),
            auroc=_number(aurocs[index]),
        )
        for index, name in enumerate(class_names)
    )


def _names_where(mask: Tensor, class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(class_names[index] for index in mask.nonzero().flatten().tolist())


def _number(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None
