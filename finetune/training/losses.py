"""What is minimised.

Each loss takes the targets as classes or as shares, and one-hot shares cost what the class does.

Shapes: ``B`` images, ``C`` classes. Targets are classes ``[B]`` int64, or shares ``[B, C]`` in
[0, 1]: multi-hot labels, or what mixup and cutmix make of either.
"""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.answers import Task

LossName = Literal["cross_entropy", "bce", "focal"]


def create_loss(
    name: LossName,
    *,
    task: Task,
    label_smoothing: float,
    class_weights: Sequence[float] | None = None,
    log_priors: Sequence[float] | None = None,
    gamma: float = 2.0,
) -> nn.Module:
    """Make a loss from logits ``[B, C]`` and targets to the batch's mean, a scalar.

    Args:
        name: ``cross_entropy``; ``bce`` (each class against all others); ``focal`` (what is
            answered well already counts less). With ``multilabel``, the first two are both binary
            cross-entropy per label.
        task: what the logits mean.
        label_smoothing: in [0, 1). Share of the target spread evenly over all classes (Szegedy et
            al. 2016, section 7); with ``multilabel``, over yes and no.
        class_weights: ``C`` factors of each class's part; with ``multilabel``, of the images that
            show the label.
        log_priors: ``C`` logarithms of the classes' shares, added to the logits in training
            (Menon et al. 2021, logit adjustment; for ``bce`` see `OneVersusAll`); not with
            ``multilabel``.
        gamma: of ``focal``, >= 0; 0 gives the plain loss. The others have none.

    Raises:
        ValueError: ``log_priors`` with ``multilabel``; ``gamma`` below 0.
    """
    if gamma < 0:
        raise ValueError(f"gamma: got {gamma}, expected a number >= 0.")
    is_multilabel = task == "multilabel"
    if is_multilabel and log_priors is not None:
        raise ValueError("log_priors: got some, but labels of one image have no shares.")
    match name:
        case "cross_entropy":
            if is_multilabel:
                return BinaryCrossEntropy(label_smoothing, class_weights)
            return CrossEntropy(label_smoothing, class_weights, log_priors)
        case "bce":
            if is_multilabel:
                return BinaryCrossEntropy(label_smoothing, class_weights)
            return OneVersusAll(label_smoothing, class_weights, log_priors)
        case "focal":
            if is_multilabel:
                return BinaryFocal(label_smoothing, class_weights, gamma)
            return Focal(label_smoothing, class_weights, log_priors, gamma)
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


class OneVersusAll(nn.Module):
    """Binary cross-entropy of each class against all others, for images of one class.

    The answer is still the softmax and the argmax of the logits, though a class's sigmoid alone
    is what was fitted. The mean runs over the classes too, as in timm, so gradients are smaller
    than those of cross-entropy by about ``C``.

    A weight is of all that an image says: of its row, by its class. ``log_priors`` act in training
    alone, as elsewhere, but what is added to a logit is the log-odds of the class's share, not its
    logarithm: against all others, that is the answer of a model that knows nothing but the share.

    Source: Wightman et al. 2021 (ResNet strikes back), section 3; mixed targets are taken as they
    are, not set to 1.
    """

    weights: Tensor | None
    log_odds: Tensor | None

    def __init__(
        self,
        label_smoothing: float,
        class_weights: Sequence[float] | None,
        log_priors: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", _tensor(class_weights), persistent=False)
        shares = None if log_priors is None else torch.tensor(log_priors).exp()
        log_odds = None if shares is None else shares.logit(eps=1e-6)
        self.register_buffer("log_odds", log_odds, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean over images and classes."""
        if self.log_odds is not None and self.training:
            logits = logits + self.log_odds
        shares = _shares(targets, logits)
        smoothed = _spread(shares, self.label_smoothing)
        each = functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
        rows = each.mean(1)
        return (rows if self.weights is None else rows * (shares @ self.weights)).mean()


class Focal(nn.Module):
    """Cross-entropy times ``(1 - p) ** gamma``, where ``p`` is the probability of the class.

    With shares, each class's part has the factor of its own probability.

    Source: Lin et al. 2017, equation 4, with the softmax for several classes.
    """

    weights: Tensor | None
    log_priors: Tensor | None

    def __init__(
        self,
        label_smoothing: float,
        class_weights: Sequence[float] | None,
        log_priors: Sequence[float] | None,
        gamma: float,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.register_buffer("weights", _tensor(class_weights), persistent=False)
        self.register_buffer("log_priors", _tensor(log_priors), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean over the images."""
        if self.log_priors is not None and self.training:
            logits = logits + self.log_priors
        logarithms = logits.float().log_softmax(1)
        smoothed = _spread(_shares(targets, logarithms), self.label_smoothing)
        # Where p rounds to 1, the slope of a root (gamma < 1) is infinite, and times 0 is NaN.
        misses = (1 - logarithms.exp()).clamp(min=torch.finfo(torch.float32).eps)
        each = -smoothed * misses**self.gamma * logarithms
        return (each if self.weights is None else each * self.weights).sum(1).mean()


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


class BinaryFocal(nn.Module):
    """Binary cross-entropy per label, yes times ``(1 - p) ** gamma`` and no times ``p ** gamma``.

    Source: Lin et al. 2017, equation 4; ``class_weights`` stand for its alpha.
    """

    weights: Tensor | None

    def __init__(
        self, label_smoothing: float, class_weights: Sequence[float] | None, gamma: float
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.register_buffer("weights", _tensor(class_weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean over images and labels."""
        logits = logits.float()
        smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        # Powers as exponentials of logarithms: no slope is infinite where p rounds to 0 or 1.
        positive = smoothed * (self.gamma * no).exp() * yes
        if self.weights is not None:
            positive = positive * self.weights
        return -(positive + (1 - smoothed) * (self.gamma * yes).exp() * no).mean()


def _shares(targets: Tensor, logits: Tensor) -> Tensor:
    if targets.ndim == 2:
        return targets
    return functional.one_hot(targets, logits.shape[1]).to(logits.dtype)


def _spread(shares: Tensor, label_smoothing: float) -> Tensor:
    return shares * (1 - label_smoothing) + label_smoothing / shares.shape[1]


def _tensor(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32)
