"""Resize, crop and normalise: one torch module for validation, prediction and every export.

Shapes: ``B`` images, ``H`` x ``W`` pixels as decoded, ``S`` = ``image_size_px``.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import ConfigError, did_you_mean

ResizeMode = Literal["crop", "pad", "squash"]
Interpolation = Literal["bilinear", "bicubic"]
Color = Literal["rgb", "grey"]


class Preprocess(nn.Module):
    """Turn decoded images of any size into the network's input.

    * ``crop``: the shorter side becomes ``round(image_size_px / crop_fraction)``, then the centre
      is cut out; edges are lost, proportions stay. A side longer than 8 times the other is first
      cut to its centre.
    * ``pad``: the longer side becomes ``image_size_px``, the rest is filled with the mean colour.
    * ``squash``: both sides become ``image_size_px``; proportions are lost.

    Downscaling is antialiased, as in Pillow. ``torch.jit.script`` of the module gives bitwise
    the same values. No buffer enters the state dict: the settings travel with the model, and
    weights do not depend on them.

    Args:
        image_size_px: side ``S`` of the square output, >= 1.
        resize_mode: see above.
        crop_fraction: in (0, 1]; the part of the resized shorter side that ``crop`` keeps.
        interpolation: ``bilinear`` or ``bicubic``; the latter is clamped to 0..255.
        mean: per channel, for values in 0..1.
        std: per channel, for values in 0..1, > 0.
        color: ``grey`` gives all three channels the luma (ITU-R BT.601, as Pillow's mode L), so
            that a tint of the film or the screen says nothing; weights made for colour still fit.

    Raises:
        ConfigError: a value lies outside its range.
    """

    # A scan of 10 x 100,000 pixels would be resized to S x 10,000 S before its centre is cut out.
    max_crop_aspect: Final[int] = 8

    mean_255: Tensor
    std_255: Tensor

    def __init__(
        self,
        image_size_px: int,
        resize_mode: ResizeMode,
        crop_fraction: float,
        interpolation: Interpolation,
        mean: Sequence[float],
        std: Sequence[float],
        color: Color = "rgb",
    ) -> None:
        super().__init__()
        _check_words(resize_mode, interpolation, color)
        _check_numbers(image_size_px, crop_fraction, mean, std)
        self.image_size_px = int(image_size_px)
        self.resize_mode: str = resize_mode
        self.crop_fraction = float(crop_fraction)
        self.resize_px = round(self.image_size_px / self.crop_fraction)
        self.interpolation: str = interpolation
        self.color: str = color
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]
        self.register_buffer("mean_255", _as_channels(self.mean), persistent=False)
        self.register_buffer("std_255", _as_channels(self.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Resize and normalise ``[B, 3, H, W]`` or ``[3, H, W]`` (uint8) to ``[B, 3, S, S]``."""
        return self.normalise(self.resize(images))

    @torch.jit.export
    def resize(self, images: Tensor) -> Tensor:
        """Bring images of one size to ``S`` x ``S``.

        Args:
            images: ``[B, 3, H, W]`` or ``[3, H, W]``, uint8 (or float in 0..255), H and W >= 1.

        Returns:
            ``[B, 3, S, S]``, float32, 0..255 (``B`` = 1 for a single image).

        Raises:
            ValueError: another shape.
        """
        if images.dim() == 3:
            images = images.unsqueeze(0)
        if images.dim() != 4 or images.size(1) != 3 or images.size(2) < 1 or images.size(3) < 1:
            raise ValueError(f"got images of shape {images.shape}, expected [B, 3, H, W]")
        size = self.image_size_px
        if self.resize_mode == "squash":
            return self._interpolate(images, size, size)
        if self.resize_mode == "pad":
            return self._pad(images)
        return self._crop(images)

    @torch.jit.export
    def normalise(self, images: Tensor) -> Tensor:
        """Take the luma where the images are grey, subtract the mean, divide by the deviation.

        Args:
            images: ``[B, 3, S, S]``, 0..255, uint8 or float.

        Returns:
            ``[B, 3, S, S]``, float32, about -3..3.
        """
        images = images.to(torch.float32)
        if self.color == "grey":
            red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
            images = 0.299 * red + 0.587 * green + 0.114 * blue
        mean, std = self.mean_255.to(images.device), self.std_255.to(images.device)
        return (images - mean) / std

    def _crop(self, images: Tensor) -> Tensor:
        size = self.image_size_px
        height, width = images.size(2), images.size(3)
        shorter = min(height, width)
        # The same parity as the whole image keeps the centre where it was.
        height = min(height, self.max_crop_aspect * shorter + (height - shorter) % 2)
        width = min(width, self.max_crop_aspect * shorter + (width - shorter) % 2)
        images = _centre(images, height, width)

        images = self._interpolate(
            images, self.resize_px * height // shorter, self.resize_px * width // shorter
        )
        return _centre(images, size, size)

    def _pad(self, images: Tensor) -> Tensor:
        size = self.image_size_px
        longer = max(images.size(2), images.size(3))
        height = max(1, size * images.size(2) // longer)
        width = max(1, size * images.size(3) // longer)
        top, left = (size - height) // 2, (size - width) // 2
        canvas = self.mean_255.repeat(images.size(0), 1, size, size)
        canvas[:, :, top : top + height, left : left + width] = self._interpolate(
            images, height, width
        )
        return canvas

    def _interpolate(self, images: Tensor, height: int, width: int) -> Tensor:
        images = images.to(torch.float32)
        if images.size(2) == height and images.size(3) == width:
            return images
        # To a width of 1, torch takes little but the first row; to a height of 1 it is right.
        is_turned = width == 1
        if is_turned:
            images, height, width = images.transpose(2, 3), width, height
        resized = functional.interpolate(
            images,
            size=[height, width],
            mode=self.interpolation,
            align_corners=False,
            antialias=True,
        )
        if is_turned:
            resized = resized.transpose(2, 3)
        # The cubic kernel overshoots at edges.
        return resized.clamp(0.0, 255.0) if self.interpolation == "bicubic" else resized

    def settings(self) -> dict[str, Any]:
        """Return plain values such that ``Preprocess(**settings)`` does the same."""
        return {
            "image_size_px": self.image_size_px,
            "resize_mode": self.resize_mode,
            "crop_fraction": self.crop_fraction,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "color": self.color,
        }


def _centre(images: Tensor, height: int, width: int) -> Tensor:
    """Cut the centre out of ``[B, 3, H, W]``.

    Half a pixel is rounded to the even number, as torchvision's ``CenterCrop`` does, so that
    pretrained weights see what they were evaluated on.
    """
    down, across = images.size(2) - height, images.size(3) - width
    top = (down + down // 2 % 2) // 2
    left = (across + across // 2 % 2) // 2
    return images[:, :, top : top + height, left : left + width]


def _as_channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) * 255.0


def _check_words(resize_mode: str, interpolation: str, color: str) -> None:
    for key, word, words in (
        ("resize_mode", resize_mode, ("crop", "pad", "squash")),
        ("interpolation", interpolation, ("bilinear", "bicubic")),
        ("color", color, ("rgb", "grey")),
    ):
        if word not in words:
            hint = did_you_mean(word, words)
            raise ConfigError(f"{key}: got `{word}`, expected one of {', '.join(words)}.{hint}")


def _check_numbers(
    image_size_px: int, crop_fraction: float, mean: Sequence[float], std: Sequence[float]
) -> None:
    if image_size_px < 1:
        raise ConfigError(f"image_size_px: got {image_size_px}, expected an integer >= 1.")
    if not 0 < crop_fraction <= 1:
        raise ConfigError(f"crop_fraction: got {crop_fraction}, expected a number in (0, 1].")
    if len(mean) != 3:
        raise ConfigError(f"mean: got {list(mean)}, expected three numbers in 0..1.")
    if len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"std: got {list(std)}, expected three numbers > 0.")
