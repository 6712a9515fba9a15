"""What a classifier with any number of labels per image gets right.

Shapes: ``N`` images, ``C`` labels. A label is given from a probability of 0.5 on. What is
undefined follows `finetune.evaluation.scores`; labels that no image shows are listed in
``absent_classes``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.errors import DataError, FinetuneError
from finetune.evaluation.reliability import expected_calibration_error
from finetune.evaluation.scores import (
    ClassMetrics,
    class_aurocs,
    class_average_precisions,
    class_scores,
    count,
    describe_classes,
    number,
)
from finetune.models.answers import as_hot, decide


@dataclass(frozen=True, slots=True)
class MultilabelMetrics:
    """How good a classifier is on ``n`` images with any number of labels.

    Every score is a fraction in [0, 1] where nothing else is said, ``None`` where undefined.

    Attributes:
        exact_match: share of images with all labels right.
        hamming_accuracy: share of right answers among all pairs of an image and a label.
        macro_precision: mean precision over the labels present and given at least once.
        macro_recall: mean recall over the labels present.
        macro_f1: mean F1 over the labels present.
        micro_f1: F1 of all pairs together.
        mean_average_precision: mean over the labels that have both positives and negatives.
        auroc: mean over the same labels.
        log_loss: mean over all pairs of -log of the probability of the truth, in nats, >= 0;
            the probability is clipped to 2.2e-16.
        brier_score: mean over all pairs of the squared difference between probability and truth.
        expected_calibration_error: see `finetune.evaluation.reliability`.
        absent_classes: names of labels that no image shows.
        per_class: one row per label, in class order.
    """

    n: int
    exact_match: float
    hamming_accuracy: float
    macro_precision: float | None
    macro_recall: float | None
    macro_f1: float | None
    micro_f1: float | None
    mean_average_precision: float | None
    auroc: float | None
    log_loss: float
    brier_score: float
    expected_calibration_error: float
    absent_classes: tuple[str, ...]
    per_class: tuple[ClassMetrics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values: dicts, lists, strings, finite numbers and ``None``."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain


def multilabel_metrics(
    probabilities: Tensor, targets: Tensor, class_names: Sequence[str]
) -> MultilabelMetrics:
    """Measure a classifier on labelled images.

    Args:
        probabilities: ``[N, C]`` floating in [0, 1]; any device.
        targets: ``[N, C]`` of 0 and 1; any type.
        class_names: ``C`` names in the order of the columns.

    Raises:
        DataError: there is no image.
        FinetuneError: a probability is not finite.
        ValueError: the shapes or ranges do not fit each other.
    """
    probabilities, targets = probabilities.detach().cpu().double(), targets.detach().cpu()
    _check(probabilities, targets, class_names)
    is_given, is_true = decide(probabilities, "multilabel"), as_hot(targets, len(class_names))
    counts = count(is_given, is_true)
    scores = class_scores(counts)
    aurocs = class_aurocs(probabilities, is_true)
    precisions = class_average_precisions(probabilities, is_true)
    per_class = describe_classes(class_names, counts, aurocs, precisions)
    together = count(is_given.reshape(-1, 1), is_true.reshape(-1, 1))
    return MultilabelMetrics(
        n=len(targets),
        exact_match=float((is_given == is_true).all(1).double().mean()),
        hamming_accuracy=float((is_given == is_true).double().mean()),
        macro_precision=number(scores.precision[counts.tp + counts.fn > 0].nanmean()),
        macro_recall=number(scores.recall.nanmean()),
        macro_f1=number(scores.f1.nanmean()),
        micro_f1=number(class_scores(together).f1[0]),
        mean_average_precision=number(precisions.nanmean()),
        auroc=number(aurocs.nanmean()),
        log_loss=float(pair_log_losses(probabilities, is_true).mean()),
        brier_score=float((probabilities - is_true.double()).square().mean()),
        expected_calibration_error=expected_calibration_error(probabilities, targets, "multilabel"),
        absent_classes=tuple(row.name for row in per_class if not row.support),
        per_class=per_class,
    )


def pair_log_losses(probabilities: Tensor, is_true: Tensor) -> Tensor:
    """Give -log of the probability of each truth, in nats: both ``[N, C]`` to ``[N, C]``."""
    of_truth = torch.where(is_true, probabilities, 1 - probabilities)
    return -of_truth.clamp(torch.finfo(torch.float64).eps, 1).log()


def _check(probabilities: Tensor, targets: Tensor, class_names: Sequence[str]) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] != len(class_names):
        raise ValueError(
            f"probabilities: got shape {list(probabilities.shape)}, "
            f"expected [N, {len(class_names)}]."
        )
    if targets.shape != probabilities.shape or not ((targets == 0) | (targets == 1)).all():
        raise ValueError(
            f"targets: got shape {list(targets.shape)}, expected {list(probabilities.shape)} "
            "of 0 and 1."
        )
    if not len(targets):
        raise DataError("Got no image to evaluate, expected at least one.")
    if not probabilities.isfinite().all():
        broken = int((~probabilities.isfinite()).any(1).sum())
        raise FinetuneError(
            f"The model answered {broken} of {len(targets)} images with NaN or infinity, expected "
            "probabilities. Its weights have probably diverged: train with a lower learning rate."
        )
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("probabilities: got numbers outside 0..1; pass logits through sigmoid.")
