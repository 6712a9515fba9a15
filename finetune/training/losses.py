"""What is minimised."""

from typing import Literal, assert_never

from torch import nn

LossName = Literal["cross_entropy"]


def create_loss(name: LossName, *, label_smoothing: float) -> nn.Module:
    """Make a loss from logits ``[B, C]`` and labels ``[B]`` to the batch's mean, a scalar.

    Args:
        name: ``cross_entropy``.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1)
            (Szegedy et al. 2016, section 7).
    """
    match name:
        case "cross_entropy":
            return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        case _:
            assert_never(name)
