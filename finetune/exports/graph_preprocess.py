"""Preprocessing as a graph of plain operators, for formats that cannot script Python.

The same numbers as `finetune.data.preprocess.Preprocess`, for images of any height and width. A
resize along one axis is linear, so that resize and crop together are two products with matrices,
one for each axis, whose weights follow from the image's size by arithmetic. No operator of a
runtime is relied on for antialiasing, which each of them defines in its own way.

Shapes: ``B`` images, ``H`` x ``W`` pixels, ``S`` = ``image_size_px``.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.data.preprocess import Preprocess

CUBIC = -0.5
"""Of the cubic kernel with antialiasing, in Pillow and in torch; Keys 1981."""


class _Axis(NamedTuple):
    """What happens to one axis: numbers int64 ``[]``."""

    start: Tensor
    """First pixel that is looked at."""
    length: Tensor
    """Pixels that are looked at."""
    resized: Tensor
    """What these become."""
    first: Tensor
    """First of the resized that is kept; negative where the result is padded."""


class GraphPreprocess(nn.Module):
    """Resize, crop and normalise with sizes that are only known when it runs.

    Args:
        preprocess: what to equal, to within 0.001 of 255.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def forward(self, images: Tensor) -> Tensor:
        """Turn uint8 ``[B, 3, H, W]`` into ``[B, 3, S, S]``, normalised."""
        return self.preprocess.normalise(self.resize(images))

    def resize(self, images: Tensor) -> Tensor:
        """Turn uint8 ``[B, 3, H, W]`` into float32 ``[B, 3, S, S]`` in 0..255."""
        rows, columns = self._axes(_as_tensor(images.shape[2]), _as_tensor(images.shape[3]))
        pixels = images.to(torch.float32)
        pixels = torch.matmul(pixels, self._weights(images.shape[3], columns).transpose(0, 1))
        pixels = torch.matmul(self._weights(images.shape[2], rows), pixels)
        if self.preprocess.interpolation == "bicubic":
            pixels = pixels.clamp(0.0, 255.0)  # the cubic kernel overshoots at edges
        if self.preprocess.resize_mode == "pad":
            inside = self._inside(rows).unsqueeze(1) & self._inside(columns).unsqueeze(0)
            pixels = torch.where(inside, pixels, self.preprocess.mean_255)
        return pixels

    def _axes(self, height: Tensor, width: Tensor) -> tuple[_Axis, _Axis]:
        """Say what becomes of the rows and of the columns; see `Preprocess` for the three modes."""
        size, zero = _as_tensor(self.preprocess.image_size_px), _as_tensor(0)
        if self.preprocess.resize_mode == "squash":
            return _Axis(zero, height, size, zero), _Axis(zero, width, size, zero)
        if self.preprocess.resize_mode == "pad":
            longer = torch.maximum(height, width)
            sides = [(size * side // longer).clamp(min=1) for side in (height, width)]
            firsts = [-((size - side) // 2) for side in sides]
            return (
                _Axis(zero, height, sides[0], firsts[0]),
                _Axis(zero, width, sides[1], firsts[1]),
            )
        shorter = torch.minimum(height, width)
        return self._crop(height, shorter), self._crop(width, shorter)

    def _crop(self, side: Tensor, shorter: Tensor) -> _Axis:
        most = self.preprocess.max_crop_aspect * shorter + (side - shorter) % 2
        length = torch.minimum(side, most)
        resized = self.preprocess.resize_px * length // shorter
        first = _centre(resized, self.preprocess.image_size_px)
        return _Axis(_centre(side, length), length, resized, first)

    def _weights(self, side: int, axis: _Axis) -> Tensor:
        """Give ``[S, side]``: how much of each pixel goes into each of the resized.

        The kernel is as wide as a resized pixel where the image shrinks, and rows add up to 1.
        """
        scale = axis.length.to(torch.float32) / axis.resized.to(torch.float32)
        kept = torch.arange(self.preprocess.image_size_px) + axis.first
        centres = (kept.to(torch.float32) + 0.5) * scale
        seen = torch.arange(side) - axis.start
        away = (seen.to(torch.float32) + 0.5).unsqueeze(0) - centres.unsqueeze(1)
        weights = self._kernel((away / scale.clamp(min=1.0)).abs())
        weights = weights * ((seen >= 0) & (seen < axis.length)).to(torch.float32)
        # What lies in the padding has no weights at all.
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)

    def _kernel(self, away: Tensor) -> Tensor:
        if self.preprocess.interpolation == "bilinear":
            return (1 - away).clamp(min=0)
        near = ((CUBIC + 2) * away - (CUBIC + 3)) * away * away + 1
        far = (((away - 5) * away + 8) * away - 4) * CUBIC
        return torch.where(away < 1, near, torch.where(away < 2, far, torch.zeros_like(away)))

    def _inside(self, axis: _Axis) -> Tensor:
        kept = torch.arange(self.preprocess.image_size_px) + axis.first
        return (kept >= 0) & (kept < axis.resized)


def _as_tensor(number: int) -> Tensor:
    # Not torch.tensor: a size that is only known at run time would become a constant.
    return torch.full((), number, dtype=torch.int64)


def _centre(whole: Tensor, part: Tensor | int) -> Tensor:
    """Find where a centred part begins, rounded as `finetune.data.preprocess` does."""
    spare = whole - part
    return (spare + spare // 2 % 2) // 2
