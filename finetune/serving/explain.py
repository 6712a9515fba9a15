"""What the model looked at: a map of the places that speak for a class.

Shapes: ``K`` channels of the backbone's last map of ``h`` x ``w`` places, ``S`` pixels a side.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class NoMapError(Exception):
    """There is no map for this backbone or image; the message says why, in a sentence."""


def class_activation_map(
    backbone: nn.Module, head: nn.Module, image: Tensor, class_index: int
) -> Tensor:
    """Say where the evidence for a class lies, by Grad-CAM on the backbone's last feature map.

    The map's channels are added up, each with the mean gradient of the class's logit as its
    weight; what is negative speaks against the class and is left out. Parameters need no
    gradients: the map is the only leaf.

    Args:
        backbone: of timm, in eval mode; ``forward_features`` gives ``[1, K, h, w]``.
        head: pooled features to logits.
        image: normalised, ``[1, 3, S, S]``, on the network's device.
        class_index: of the logit that is explained.

    Returns:
        ``[S, S]`` on the CPU, float32 in 0..1; the strongest place is 1.

    Raises:
        NoMapError: the backbone has no such map, as transformers, or nothing speaks for the class.

    Source: Selvaraju et al. 2017, "Grad-CAM".
    """
    network = cast(Any, backbone)
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise NoMapError("this backbone does not give its last feature map")
    with torch.inference_mode(mode=False):
        with torch.no_grad():
            features: Tensor = network.forward_features(image)
        if features.ndim != 4 or features.shape[1] != getattr(backbone, "num_features", None):
            raise NoMapError("this backbone is no ConvNet: it has no map of channels and places")
        if features.shape[2:].numel() == 1:
            raise NoMapError("the backbone's last map has a single place for the whole image")
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            logit = head(network.forward_head(features))[0, class_index]
            (gradient,) = torch.autograd.grad(logit, features)
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    evidence = (weights * features.detach().float()).sum(dim=1, keepdim=True).clamp(min=0)
    if not evidence.isfinite().all() or evidence.max() <= 0:
        raise NoMapError("no place of the last feature map speaks for this class")
    size = list(image.shape[2:])
    smooth = functional.interpolate(evidence, size, mode="bilinear", align_corners=False)[0, 0]
    return (smooth / smooth.max()).cpu()
