"""What the model looked at: a map of the places that speak for a class.

Shapes: ``B`` images of ``S`` pixels a side, ``K`` channels of the backbone's last map of
``h`` x ``w`` places, ``F`` pooled features, ``C`` classes.
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
    """Say where in an image the evidence for a class lies: `class_activation_maps` of one.

    Args:
        backbone: see `class_activation_maps`.
        head: likewise.
        image: normalised, ``[1, 3, S, S]``, on the network's device.
        class_index: of the logit that is explained, in 0..C-1.

    Returns:
        ``[S, S]`` on the CPU, float32 in 0..1; the strongest place is 1.

    Raises:
        NoMapError: the backbone has no such map, or no place of it speaks for the class.
    """
    heat = class_activation_maps(backbone, head, image, torch.tensor([class_index]))[0]
    if heat.max() <= 0:
        raise NoMapError("no place of the last feature map speaks for this class")
    return heat


def class_activation_maps(
    backbone: nn.Module, head: nn.Module, images: Tensor, class_indices: Tensor
) -> Tensor:
    """Say where in each image the evidence for a class lies, by HiResCAM on the last feature map.

    A place counts with the sum over channels of its activation times the gradient of the logit
    there, which is what the place adds to the logit, to first order. What is negative speaks
    against the class and is left out. The few places are blown up to the image's size, so the
    map is coarse. Parameters need no gradients: the last map is the only leaf.

    Why this one: with average pooling before a linear head, as in most ConvNets, it equals CAM
    (``sum_k w_ck A_k``), and the places add up to the logit less its bias. There Grad-CAM equals
    it too, but not where something looks at places one by one before they are averaged (the
    convolutions in the head of a VGG): Grad-CAM's mean gradients then mark places that the logit
    does not depend on. LayerCAM drops all negative gradients, and with them the sum.

    In a network whose places look at each other before the last map, by attention, the map is
    still true of that map, but less so of the pixels below.

    Args:
        backbone: of timm, in eval mode; ``forward_features`` gives ``[B, K, h, w]``, and
            ``forward_head`` makes pooled features ``[B, F]`` of them.
        head: ``[B, F]`` to logits ``[B, C]``.
        images: normalised, ``[B, 3, S, S]``, on the network's device; images do not influence
            each other.
        class_indices: ``[B]`` int64 in 0..C-1, of the logits that are explained.

    Returns:
        ``[B, S, S]`` on the CPU, float32 in 0..1; an image's strongest place is 1. All of an
        image is 0 where no place speaks for its class, or the numbers are not finite.

    Raises:
        NoMapError: the backbone does not end in a map of several places, as transformers, which
            give a sequence of tokens or a map with its channels last.

    Source: Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks"; CAM: Zhou et al. 2016, "Learning deep features for
    discriminative localization".
    """
    network = cast(Any, backbone)
    with torch.inference_mode(mode=False):
        with torch.no_grad():
            features = _last_map(backbone, images)
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            # A copy, as some heads begin with an activation in place.
            logits: Tensor = head(network.forward_head(leaf.clone()))
            # Copied, since an inference tensor cannot be kept for the way back.
            chosen = logits.gather(1, class_indices.to(logits.device).clone().unsqueeze(1))
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
    evidence = (gradient.float() * features.float()).sum(dim=1, keepdim=True).clamp(min=0)
    size = list(images.shape[2:])
    smooth = functional.interpolate(evidence, size, mode="bilinear", align_corners=False)[:, 0]
    strongest = smooth.amax(dim=(1, 2), keepdim=True)
    is_known = strongest.isfinite() & (strongest > 0)
    return torch.where(is_known, smooth / strongest, 0.0).cpu()


def _last_map(backbone: nn.Module, images: Tensor) -> Tensor:
    network = cast(Any, backbone)
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise NoMapError("this backbone does not give its last feature map")
    features = network.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise NoMapError("this backbone is no ConvNet: it has no map of channels and places")
    if features.shape[1] != network.num_features:
        raise NoMapError("this backbone is no ConvNet of the usual kind: its channels come last")
    if features.shape[2:].numel() == 1:
        raise NoMapError("the backbone's last map has a single place for the whole image")
    return features
