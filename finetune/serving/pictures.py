"""Tensors as PNG files inside a URL, for the page.

Shapes: ``S`` pixels a side.
"""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

# Dark violet to light yellow: brightness rises all along, so it reads without colour vision too.
_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array(
    [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], dtype=np.float64
)


def image_url(image: Tensor) -> str:
    """Write ``[1, 3, S, S]`` in 0..255 as a PNG, in a ``data:`` URL."""
    return _as_url(image[0].round().byte().permute(1, 2, 0).numpy())


def heat_url(heat: Tensor) -> str:
    """Write a map ``[S, S]`` in 0..1 as a PNG that is coloured, and transparent where it is 0."""
    values = heat.double().numpy()
    channels = [np.interp(values, _STOPS, _COLOURS[:, channel]) for channel in range(3)]
    return _as_url(np.stack([*channels, 255 * values], axis=2).round().astype(np.uint8))


def _as_url(pixels: npt.NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
