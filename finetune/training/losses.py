"""What is minimised.

Shapes: ``B`` images, ``C`` classes. Targets are classes ``[B]`` int64, or shares ``[B, C]`` in
[0, 1]: multi-hot labels, or what mixup and cutmix make of either.
"""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.answers import Task

LossName = Literal["cross_entropy"]


def create_loss(
    name: LossName,
    *,
    task: Task,
    label_smoothing: float,
    class_weights: Sequence[float] | None = None,
    log_priors: Sequence[float] | None = None,
) -> nn.Module:
    """Make a loss from logits ``[B, C]`` and targets to the batch's mean, a scalar.

    Args:
        name: ``cross_entropy``; with ``multilabel``, binary cross-entropy per label.
        task: what the logits mean.
        label_smoothing: in [0, 1). Share of the target spread evenly over all classes (Szegedy et
            al. 2016, section 7); with ``multilabel``, over yes and no.
        class_weights: ``C`` factors of each class's part; with ``multilabel``, of the images that
            show the label.
        log_priors: ``C`` logarithms of the classes' shares, added to the logits in training
            (Menon et al. 2021, logit adjustment); not with ``multilabel``.

    Raises:
        ValueError: ``log_priors`` with ``multilabel``.
    """
    match name:
        case "cross_entropy":
            if task == "multiclass":
                return CrossEntropy(label_smoothing, class_weights, log_priors)
            if log_priors is not None:
                raise ValueError("log_priors: got some, but labels of one image have no shares.")
            return BinaryCrossEntropy(label_smoothing, class_weights)
        case _:
            assert_never(name)


def image_losses(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Give each image's plain loss in nats, ``[B]``: no weights, no smoothing, no adjustment.

    With ``multilabel`` it is the mean over the labels.
    """
    if task == "multiclass":
        return functional.cross_entropy(logits, targets, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


class CrossEntropy(nn.Module):
    """Cross-entropy whose classes may be weighted, or adjusted to their shares."""

    weights: Tensor | None
    log_priors: Tensor | None

    def __init__(
        self,
        label_smoothing: float,
        class_weights: Sequence[float] | None,
        log_priors: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        # Not persistent: they follow from the data, and a checkpoint is of the network.
        self.register_buffer("weights", _tensor(class_weights), persistent=False)
        self.register_buffer("log_priors", _tensor(log_priors), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean over the images.

        torch divides by the sum of the weights for classes and by ``B`` for shares; here it is
        ``B`` for both, so that mixup changes nothing about the scale.
        """
        if self.log_priors is not None and self.training:
            logits = logits + self.log_priors
        total = functional.cross_entropy(
            logits, targets, self.weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / len(logits)


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy per label, whose positive images may be weighted."""

    weights: Tensor | None

    def __init__(self, label_smoothing: float, class_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", _tensor(class_weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean over images and labels."""
        smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            logits, smoothed, pos_weight=self.weights
        )


def _tensor(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32)
