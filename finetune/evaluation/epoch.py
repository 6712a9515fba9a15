"""The metrics of an epoch: updated batch by batch on the device, summed over all processes.

Shapes: ``B`` images of a batch, ``N`` of all, ``C`` classes. Targets are classes ``[B]`` int64,
or ``[B, C]`` multi-hot with ``multilabel``. What is undefined is NaN, by the rule of
`finetune.evaluation.scores`.

With two classes, ``sensitivity``, ``specificity`` and ``auroc`` are of the second. Else they are
means over the classes, as ``macro_f1`` and ``mean_average_precision`` always are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from finetune.evaluation.scores import (
    Counts,
    class_aurocs,
    class_average_precisions,
    class_scores,
    count,
    macro_specificity,
)
from finetune.models.answers import Task, as_hot, decide

_COUNTED = ("accuracy", "balanced_accuracy", "macro_f1", "sensitivity", "specificity")
_RANKED = ("auroc", "mean_average_precision")
METRICS = (*_COUNTED, *_RANKED)


class Totals(NamedTuple):
    """Everything that is counted: per class, images with all labels right, and images."""

    counts: Counts
    right: Tensor
    images: Tensor


def training_metrics(num_classes: int, *, task: Task, names: Sequence[str]) -> MetricCollection:
    """Make the metrics that a training loop updates batch by batch.

    ``update(probabilities [B, C], targets)`` stays on the device; ``compute()`` gives scalars by
    name, equal to those of the evaluation. ``clone(prefix="val_")`` renames.

    Args:
        num_classes: >= 2.
        task: what the probabilities mean.
        names: some of ``METRICS``.

    Raises:
        ValueError: another name.
    """
    if unknown := set(names) - set(METRICS):
        raise ValueError(f"names: got {sorted(unknown)}, expected some of {', '.join(METRICS)}.")
    return MetricCollection(
        {name: (Counted if name in _COUNTED else Ranked)(name, num_classes, task) for name in names}
    )


def counted_score(name: str, totals: Totals, task: Task) -> Tensor:
    """Turn counts into one score, a scalar.

    ``accuracy`` is the share of images with all labels right. ``balanced_accuracy`` is the mean
    recall over the classes, and with ``multilabel`` the mean of sensitivity and specificity.
    """
    scores = class_scores(totals.counts)
    is_binary = task == "multiclass" and len(scores.recall) == 2
    sensitivity = scores.recall[1] if is_binary else scores.recall.nanmean()
    specificity = scores.specificity[1] if is_binary else macro_specificity(totals.counts)
    match name:
        case "accuracy":
            return totals.right / totals.images
        case "balanced_accuracy":
            is_mean = task == "multilabel"
            return (sensitivity + specificity) / 2 if is_mean else scores.recall.nanmean()
        case "macro_f1":
            return scores.f1.nanmean()
        case "sensitivity":
            return sensitivity
        case _:
            return specificity


def ranked_score(name: str, probabilities: Tensor, is_true: Tensor, task: Task) -> Tensor:
    """Turn the order of the images by probability, ``[N, C]`` both, into one score, a scalar."""
    if name == "mean_average_precision":
        return class_average_precisions(probabilities, is_true).nanmean()
    aurocs = class_aurocs(probabilities, is_true)
    is_binary = task == "multiclass" and len(aurocs) == 2
    return aurocs[1] if is_binary else aurocs.nanmean()


# Metrics of equal states form one compute group: each batch is counted, or kept, once.
class Counted(Metric):
    """A score of counts."""

    full_state_update = False
    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor
    right: Tensor
    images: Tensor

    def __init__(self, name: str, num_classes: int, task: Task) -> None:
        super().__init__()
        self.score = name
        self.task: Task = task
        for state in Counts._fields:
            self.add_state(state, torch.zeros(num_classes, dtype=torch.int64), "sum")
        for state in ("right", "images"):
            self.add_state(state, torch.tensor(0), "sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Count one batch."""
        is_given, is_true = _decided(probabilities, targets, self.task)
        for state, value in count(is_given, is_true)._asdict().items():
            setattr(self, state, getattr(self, state) + value)
        self.right += (is_given == is_true).all(1).sum()
        self.images += len(is_true)

    def compute(self) -> Tensor:
        """Give the score over everything counted so far, a scalar."""
        counts = Counts(self.tp, self.fp, self.fn, self.tn)
        return counted_score(self.score, Totals(counts, self.right, self.images), self.task).float()


class Ranked(Metric):
    """A score of the order of all images by probability."""

    full_state_update = False
    probabilities: list[Tensor]
    is_true: list[Tensor]

    def __init__(self, name: str, num_classes: int, task: Task) -> None:
        super().__init__()
        self.score = name
        self.num_classes = num_classes
        self.task: Task = task
        self.add_state("probabilities", [], "cat")
        self.add_state("is_true", [], "cat")
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        # A process without images has something of the right shape and type to send, too.
        nothing = torch.empty(0, self.num_classes, device=self.device)
        self.probabilities.append(nothing)
        self.is_true.append(nothing.bool())

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Keep one batch."""
        self.probabilities.append(probabilities.detach())
        self.is_true.append(as_hot(targets, self.num_classes))

    def compute(self) -> Tensor:
        """Give the score over everything kept so far, a scalar."""
        probabilities, is_true = _joined(self.probabilities), _joined(self.is_true)
        return ranked_score(self.score, probabilities, is_true, self.task).float()


def _decided(probabilities: Tensor, targets: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    return decide(probabilities, task), as_hot(targets, probabilities.shape[1])


def _joined(state: Any) -> Tensor:
    # After the processes have exchanged it, torchmetrics leaves one tensor in place of the list.
    return state if isinstance(state, Tensor) else torch.cat(state)
