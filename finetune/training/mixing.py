"""Mixup and cutmix: images of a batch mixed in pairs, and their targets likewise.

Shapes: ``B`` images, ``H`` x ``W`` pixels, ``C`` classes. torchvision's transforms of the same
name draw from torch's global generator and refuse multi-hot targets; these do neither.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from finetune.models.answers import as_hot

Mix = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]
"""Images, targets and a generator to mixed images (float) and targets ``[B, C]``."""


def create_mix(*, mixup_alpha: float, cutmix_alpha: float, num_classes: int) -> Mix | None:
    """Make what mixes each batch; with both, one of them by chance. None if both are 0.

    It takes images ``[B, 3, H, W]`` in 0..255 (uint8 or float) and classes ``[B]`` int64 or
    multi-hot labels ``[B, C]``. Each image is paired with its neighbour in the batch, whose order
    is random already.

    Args:
        mixup_alpha: the images' shares are drawn from Beta(alpha, alpha); >= 0, 0 for no mixup.
        cutmix_alpha: the same for the areas; >= 0, 0 for no cutmix.
        num_classes: ``C``.
    """
    ways = [
        (alpha, function)
        for alpha, function in ((mixup_alpha, _mixup_batch), (cutmix_alpha, _cutmix_batch))
        if alpha > 0
    ]
    if not ways:
        return None

    def mix(images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        alpha, function = ways[int(rng.integers(len(ways)))]
        shares = as_hot(targets, num_classes).float()
        return function(images.float(), shares, float(rng.beta(alpha, alpha)), rng)

    return mix


def mixup(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend each image, and its target, with its neighbour's.

    Args:
        images: ``[B, 3, H, W]`` float.
        targets: ``[B, C]`` float.
        share: of the image itself, in [0, 1].

    Source: Zhang et al. 2018.
    """
    return _blend(images, share), _blend(targets, share)


def cutmix(
    images: Tensor, targets: Tensor, box: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of each image's neighbour into it; targets mix by the area.

    Args:
        images: ``[B, 3, H, W]`` float.
        targets: ``[B, C]`` float.
        box: top, bottom, left, right in pixels; bottom and right are outside of it.

    Source: Yun et al. 2019.
    """
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = _neighbours(images)[..., top:bottom, left:right]
    area = (bottom - top) * (right - left)
    return mixed, _blend(targets, 1 - area / (images.shape[-2] * images.shape[-1]))


def draw_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a rectangle of ``1 - share`` of the area around any pixel, cut off at the edges.

    Source: Yun et al. 2019, equation 2.
    """
    half = np.sqrt(1 - share) / 2
    row, column = int(rng.integers(height)), int(rng.integers(width))
    down, across = int(half * height), int(half * width)
    return (
        max(0, row - down),
        min(height, row + down),
        max(0, column - across),
        min(width, column + across),
    )


def _mixup_batch(
    images: Tensor, targets: Tensor, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    del rng
    return mixup(images, targets, share)


def _cutmix_batch(
    images: Tensor, targets: Tensor, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    height, width = images.shape[-2:]
    return cutmix(images, targets, draw_box(height, width, share, rng))


def _blend(values: Tensor, share: float) -> Tensor:
    return share * values + (1 - share) * _neighbours(values)


def _neighbours(values: Tensor) -> Tensor:
    return torch.roll(values, 1, dims=0)
