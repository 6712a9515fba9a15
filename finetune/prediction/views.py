"""Test-time augmentation: several views of each image, whose answers are averaged.

Shapes: ``K`` images, ``S`` pixels a side.

Views are made of images that preprocessing has resized to ``S`` x ``S``, on the device or the CPU
where they are:

* ``none``: the image.
* ``flip``: the image, and its mirror image (left and right change places).
* ``crops``: the image is enlarged to ``round(S / 0.875)`` pixels a side (bilinear), and from that
  come five crops of ``S`` x ``S``: top left, top right, bottom left, bottom right and centre; each
  is followed by its mirror image. Ten views, each of which shows 7/8 of the sides.

Source: Krizhevsky et al. 2012, section 4.1, which has the ten crops.
"""

from collections.abc import Callable, Iterator
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional

Augment = Literal["none", "flip", "crops"]

CROP_FRACTION = 0.875
"""Side of a crop over that of the enlarged image."""
NUM_VIEWS = {"none": 1, "flip": 2, "crops": 10}


def make_views(images: Tensor, augment: Augment) -> Iterator[Tensor]:
    """Give the views of images, one after another, each ``[K, 3, S, S]``; see the module.

    Args:
        images: ``[K, 3, S, S]``, float.
        augment: which views.
    """
    match augment:
        case "none":
            yield images
        case "flip":
            yield images
            yield images.flip(3)
        case "crops":
            for crop in _five_crops(images):
                yield crop
                yield crop.flip(3)
        case _:
            assert_never(augment)


def average_views(
    answer: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, augment: Augment
) -> tuple[Tensor, ...]:
    """Give the mean, over the views, of each thing that a model says of an image.

    One view is answered at a time, so that memory is that of one.

    Args:
        answer: ``[K, 3, S, S]`` to tensors of float whose first dimension is ``K``.
        images: ``[K, 3, S, S]``.
        augment: which views.
    """
    sums: tuple[Tensor, ...] = ()
    for view in make_views(images, augment):
        outputs = answer(view)
        sums = tuple(map(torch.add, sums, outputs)) if sums else outputs
    return tuple(total / NUM_VIEWS[augment] for total in sums)


def _five_crops(images: Tensor) -> Iterator[Tensor]:
    size = images.shape[3]
    side = round(size / CROP_FRACTION)
    large = functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    rest = side - size
    for top, left in ((0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)):
        yield large[:, :, top : top + size, left : left + size]
