"""Images and heat maps as small JPEG files.

Shapes: ``H`` x ``W`` pixels, ``S`` pixels on the longer side of what is written.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

_QUALITY = 80
_STRONGEST = 0.75
"""Opacity of the strongest place: the image stays visible below it."""
_LUMA = np.array([0.299, 0.587, 0.114])

# Dark violet to light yellow: brightness rises all along, so it reads without colour vision too.
_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array(
    [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], dtype=np.float64
)

Pixels = npt.NDArray[np.uint8]


def picture(pixels: Pixels, side_px: int = 160) -> bytes:
    """Write an image as a JPEG file that is not larger than it must be.

    Args:
        pixels: ``[H, W, 3]`` uint8 RGB.
        side_px: of the longer side, > 0; smaller images keep their size.

    Raises:
        ValueError: another shape or type.
    """
    _check(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    if (pixels == pixels[:, :, :1]).all():
        image = image.convert("L")  # a third of the channels for a radiograph
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()


def overlay(pixels: Pixels, heat: npt.NDArray[np.floating], side_px: int = 160) -> bytes:
    """Write an image in grey with a map on it: yellow where it is strongest, nothing where it is 0.

    All colour is the map's, so that no yellow flower is taken for a strong place.

    Args:
        pixels: ``[H, W, 3]`` uint8 RGB.
        heat: ``[H, W]`` in 0..1.
        side_px: as in `picture`.

    Raises:
        ValueError: another shape, type or range.
    """
    _check(pixels)
    if heat.shape != pixels.shape[:2]:
        raise ValueError(f"heat: got {heat.shape}, expected {pixels.shape[:2]} as of the image.")
    if not heat.size or not (heat.min() >= 0 and heat.max() <= 1):  # also false for nan
        raise ValueError("heat: expected numbers in 0..1.")
    values = heat.astype(np.float64)
    colours = [np.interp(values, _STOPS, _COLOURS[:, channel]) for channel in range(3)]
    opacity = _STRONGEST * values[:, :, None]
    mixed = (1 - opacity) * (pixels @ _LUMA)[:, :, None] + opacity * np.stack(colours, axis=2)
    return picture(mixed.round().astype(np.uint8), side_px)


def _check(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"pixels: got {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W, 3]."
        )
