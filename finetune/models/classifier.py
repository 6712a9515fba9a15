"""The network that is trained: a backbone that gives features, and a head that reads them."""

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """Images to logits; ``torch.jit.script`` and eager give the same numbers.

    Args:
        backbone: images ``[B, 3, H, W]`` to pooled features ``[B, F]``.
        head: features ``[B, F]`` to logits ``[B, C]``.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Give logits ``[B, C]``, before any softmax, for normalised images ``[B, 3, H, W]``."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    @torch.jit.export
    def features(self, images: Tensor) -> Tensor:
        """Give pooled features ``[B, F]``, what the head reads, for images ``[B, 3, H, W]``."""
        features: Tensor = self.backbone(images)
        return features
