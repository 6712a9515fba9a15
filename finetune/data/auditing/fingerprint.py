"""What an image looks like, in few numbers that survive another encoding or another size."""

import numpy as np
import numpy.typing as npt
from PIL import Image

LUMA_SIDE = 16
CHROMA_SIDE = 4
SIZE = LUMA_SIDE**2 + 2 * CHROMA_SIDE**2
"""Numbers in a fingerprint."""
MIN_CONTRAST = 4.0
"""Standard deviation of the luma, of 0..255; below it, rounding decides what is seen."""

_REDUCED_SIDE = 64
# Of blue minus luma and red minus luma; about what YCbCr has.
_CHROMA_WEIGHT = 0.6


def fingerprint(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16] | None:
    """Describe an image by 16 x 16 values of luma and 4 x 4 of each chroma.

    Luma is without its mean, and all is divided by the contrast: the Euclidean distance of two
    fingerprints says how much of what is seen differs, 0 for nothing, 1.4 for what is unrelated.

    Args:
        image: ``[H, W, 3]`` RGB.

    Returns:
        ``[SIZE]``, or None for an image that is flat at this size: there is nothing to compare.
    """
    side = (_REDUCED_SIDE, _REDUCED_SIDE)
    # A box filter takes whole pixels, which puts a copy of another size twice as far away.
    small = Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)
    red, green, blue = np.moveaxis(np.asarray(small, dtype=np.float32), 2, 0)
    full_luma = 0.299 * red + 0.587 * green + 0.114 * blue
    luma = _average(full_luma, LUMA_SIDE)
    luma -= luma.mean()
    contrast = float(luma.std())
    if contrast < MIN_CONTRAST:
        return None
    chroma = [_average(color - full_luma, CHROMA_SIDE) for color in (blue, red)]
    # Divided by the roots of their numbers, luma and chroma weigh the same.
    parts = (luma / LUMA_SIDE, *(_CHROMA_WEIGHT / CHROMA_SIDE / 2**0.5 * part for part in chroma))
    return (np.concatenate(parts) / contrast).astype(np.float16)


def _average(plane: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Average ``[H, W]`` over a grid of equal cells; ``[side * side]``."""
    cell = len(plane) // side
    return np.asarray(plane.reshape(side, cell, side, cell).mean(axis=(1, 3))).ravel()
