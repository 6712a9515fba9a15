"""Pixels of any type to uint8 RGB, by the table at the top of :mod:`finetune.data.decode`.

A conversion to RGB by Pillow alone turns 16-bit grey white and float black.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffTags

from finetune.errors import ImageError

BACKGROUND = (255, 255, 255)

_BITS_PER_SAMPLE = TiffTags.lookup(258).value
_PHOTOMETRIC = TiffTags.lookup(262).value
_WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert a loaded image.

    Returns:
        ``[H, W, 3]`` RGB.

    Raises:
        ImageError: it holds values that are not finite.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = _scale_16_bit(image) if image.mode.startswith("I;16") else _scale_32_bit(image)
        if _tiff_tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            grey = 255 - grey
        return grey_to_rgb(grey)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, BACKGROUND)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return np.array(flat)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def grey_to_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Repeat ``[H, W]`` to ``[H, W, 3]``."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def stretch(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Bring the smallest value to 0 and the largest to 255; all equal become 0.

    Raises:
        ImageError: some are not finite.
    """
    low, high = find_range(values)
    # Divided first: 255 / (high - low) may be too large for a number.
    return round_to_uint8((values - low) / (high - low) * 255 if high > low else values * 0)


def find_range(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the smallest and the largest of some values.

    Raises:
        ImageError: some are not finite.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ImageError("holds values that are not finite")
    return low, high


def round_to_uint8(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Round values of about 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _scale_16_bit(image: Image.Image) -> npt.NDArray[np.uint8]:
    # TIFF may pack 12 bits.
    bits = _tiff_tags(image).get(_BITS_PER_SAMPLE, (16,))[0]
    table = round_to_uint8(np.arange(65536) * (255 / (2**bits - 1)))
    # Pillow leaves a PNG's one transparent grey value to the caller.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        table[transparent] = 255
    return np.take(table, np.asarray(image))


def _scale_32_bit(image: Image.Image) -> npt.NDArray[np.uint8]:
    # A signalling NaN warns when it is cast.
    with np.errstate(invalid="ignore"):
        values = np.asarray(image).astype(np.float64)
    low, high = find_range(values)
    if low >= 0 and high <= 1:
        return round_to_uint8(values * 255)
    if low >= 0 and high <= 255:
        return round_to_uint8(values)
    if image.mode == "I" and low >= 0 and high <= 65535:
        return round_to_uint8(values / 257)
    return stretch(values)


def _tiff_tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})
