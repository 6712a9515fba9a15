"""What every export computes: raw images in, probabilities out."""

import copy

import torch
from torch import Tensor, nn

from finetune.exports.bundle import Model
from finetune.models.answers import Task
from finetune.models.classifier import Classifier


class Deployed(nn.Module):
    """Raw images to probabilities.

    Args:
        preprocess: uint8 ``[B, 3, H, W]`` to normalised ``[B, 3, S, S]``, float32.
        classifier: these, in ``dtype``, to logits ``[B, C]``.
        task: what the logits mean.
        temperature: the logits are divided by it.
        dtype: that the network computes in.
    """

    def __init__(
        self,
        preprocess: nn.Module,
        classifier: nn.Module,
        task: Task,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.classifier = classifier
        self.is_multilabel = task == "multilabel"
        self.temperature = temperature
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Give probabilities ``[B, C]``, float32.

        Args:
            images: uint8 RGB ``[B, 3, H, W]`` of any size.
        """
        logits: Tensor = self.classifier(self.preprocess(images).to(self.dtype))
        logits = logits.float() / self.temperature
        # Not `to_probabilities`: torch cannot script its type of `task`.
        return torch.sigmoid(logits) if self.is_multilabel else torch.softmax(logits, dim=1)


def copy_of_classifier(model: Model, dtype: torch.dtype) -> Classifier:
    """Give the network alone, on the CPU, in ``dtype``; the model's own stays as it is."""
    classifier: Classifier = copy.deepcopy(model.classifier)
    classifier.to(device="cpu", dtype=dtype).eval()
    return classifier
