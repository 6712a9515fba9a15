"""Scores per class, and what is undefined, by one rule in training, evaluation and the report.

Shapes: ``N`` images, ``C`` classes or labels.

The rule for what is undefined:

- A class without a true image is *absent*. Its recall, F1, AUROC and average precision are
  undefined, and it is left out of every macro mean.
- A class that every image shows has no specificity, AUROC or average precision.
- A class with true images that is never predicted has no precision; its recall and F1 are 0 by
  definition (F1 = 2 TP / (2 TP + FP + FN)).
- Undefined numbers are NaN here, ``None`` in reports, never 0 or 1.

This equals scikit-learn with ``labels=<classes present>`` and ``zero_division=np.nan``
(F1: ``zero_division=0``). torchmetrics' own macro means differ: they count a class that is
predicted but has no true image as 0, and they report 0 for what is undefined.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision


class Counts(NamedTuple):
    """Images by truth and prediction, each ``[C]`` int64."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


class ClassScores(NamedTuple):
    """Scores per class, each ``[C]`` floating, NaN where undefined."""

    precision: Tensor
    recall: Tensor
    specificity: Tensor
    f1: Tensor


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class's share of a report; fractions in [0, 1], ``None`` where undefined.

    Attributes:
        name: of the class.
        support: images that show it.
        predicted: images that are said to show it.
        precision: share of the predicted that show it.
        recall: share of those that show it that are predicted.
        f1: harmonic mean of the two.
        auroc: area under the ROC curve, one against the rest.
        average_precision: area under the precision-recall curve, one against the rest.
    """

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    average_precision: float | None


def count(is_given: Tensor, is_true: Tensor) -> Counts:
    """Count predicted and true labels, both bool ``[N, C]``."""
    return Counts(
        tp=(is_given & is_true).sum(0),
        fp=(is_given & ~is_true).sum(0),
        fn=(~is_given & is_true).sum(0),
        tn=(~is_given & ~is_true).sum(0),
    )


def class_scores(counts: Counts) -> ClassScores:
    """Turn counts into scores per class."""
    # MPS has no float64, and float32 is exact up to 16 million images of one class.
    dtype = torch.float32 if counts.tp.device.type == "mps" else torch.float64
    tp, fp, fn, tn = (value.to(dtype) for value in counts)
    return ClassScores(
        precision=tp / (tp + fp),
        recall=tp / (tp + fn),
        specificity=tn / (tn + fp),
        f1=torch.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), math.nan),
    )


def macro_specificity(counts: Counts) -> Tensor:
    """Average the specificity over the classes present, a scalar."""
    return class_scores(counts).specificity[counts.tp + counts.fn > 0].nanmean()


def class_aurocs(probabilities: Tensor, is_true: Tensor) -> Tensor:
    """Give each class's area under the ROC curve, one against the rest, ``[C]``.

    Args:
        probabilities: ``[N, C]`` floating.
        is_true: ``[N, C]`` bool.
    """
    return _by_class(binary_auroc, probabilities, is_true)


def class_average_precisions(probabilities: Tensor, is_true: Tensor) -> Tensor:
    """Give each class's average precision, one against the rest, ``[C]``.

    The sum of precisions at each threshold, weighted by the growth of recall, without
    interpolation; as in scikit-learn.

    Args:
        probabilities: ``[N, C]`` floating.
        is_true: ``[N, C]`` bool.
    """
    return _by_class(binary_average_precision, probabilities, is_true)


def describe_classes(
    class_names: Sequence[str], counts: Counts, aurocs: Tensor, average_precisions: Tensor
) -> tuple[ClassMetrics, ...]:
    """Make a report's rows, one per class, in class order."""
    scores = class_scores(counts)
    return tuple(
        ClassMetrics(
            name=name,
            support=int(counts.tp[index] + counts.fn[index]),
            predicted=int(counts.tp[index] + counts.fp[index]),
            precision=number(scores.precision[index]),
            recall=number(scores.recall[index]),
            f1=number(scores.f1[index]),
            auroc=number(aurocs[index]),
            average_precision=number(average_precisions[index]),
        )
        for index, name in enumerate(class_names)
    )


def number(value: Tensor) -> float | None:
    """Give a scalar as a report holds it: ``None`` where it is undefined."""
    plain = float(value)
    return plain if math.isfinite(plain) else None


def _by_class(score: Callable[..., Tensor], probabilities: Tensor, is_true: Tensor) -> Tensor:
    num_images, num_classes = probabilities.shape
    values = torch.full((num_classes,), math.nan, device=probabilities.device)
    support = is_true.sum(0)
    # torchmetrics takes scores outside [0, 1] for logits, and bfloat16 rows may hold 1.004.
    numbers = probabilities.clamp(0, 1)
    # torchmetrics' own macro mean counts an undefined class as 0.
    for index in ((support > 0) & (support < num_images)).nonzero().flatten().tolist():
        values[index] = score(numbers[:, index], is_true[:, index].long(), validate_args=False)
    return values
