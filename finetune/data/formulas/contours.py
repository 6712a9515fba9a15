"""Closed contours of a few superposed waves, filled: flowers, stars, gears, blobs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from finetune.data.formulas.place import Place

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.floating[Any]]

_CORNERS = 160
_OVERSAMPLING = 2
_MAX_FREQUENCY = 20
_ANGLES = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)


@dataclass(frozen=True, slots=True)
class Contour:
    """A radius by angle: 1 and a few waves.

    Attributes:
        amplitudes: ``[N]``, below 0.7 together.
        waves: ``[N, corners]``, within -1 and 1.
    """

    amplitudes: Values
    waves: Values


def random_contour(rng: np.random.Generator) -> Contour:
    """Draw a contour of 1 to 3 waves: sines, triangles or nearly rectangles.

    Source: Takashima et al. 2023, "Visual Atoms": sinusoidal waves on a circle; radial contours
    from Kataoka et al. 2022.
    """
    count = int(rng.integers(1, 4))
    frequencies = rng.choice(np.arange(1, _MAX_FREQUENCY + 1), count, replace=False)
    amplitudes = rng.uniform(0.15, 0.6, count)
    amplitudes *= min(1.0, 0.7 / amplitudes.sum())
    waves = np.sin(frequencies[:, None] * _ANGLES + rng.uniform(0, 2 * np.pi, (count, 1)))
    match int(rng.integers(3)):
        case 1:
            waves = np.arcsin(waves) * (2 / np.pi)
        case 2:
            waves = np.tanh(4 * waves)
    return Contour(amplitudes, waves)


def draw_contour(
    contour: Contour,
    rng: np.random.Generator,
    place: Place,
) -> Mask:
    """Draw one image of a class: the waves a little larger or smaller, turned and squeezed.

    Returns:
        ``[place.side_px, place.side_px]``, 0 outside and 1 inside, between on the edge.
    """
    amplitudes = contour.amplitudes * rng.uniform(0.85, 1.15, len(contour.amplitudes))
    radii = 1 + amplitudes @ contour.waves + rng.normal(0, 0.01, _CORNERS)
    x = 0.75 * place.radius_px * radii * np.cos(_ANGLES)
    y = 0.75 * place.radius_px * radii * np.sin(_ANGLES) * rng.uniform(0.65, 1)
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    corners = np.stack([cos * x - sin * y, sin * x + cos * y], 1) + place.centre_px
    large = Image.new("L", (place.side_px * _OVERSAMPLING,) * 2)
    ImageDraw.Draw(large).polygon((corners * _OVERSAMPLING).ravel().tolist(), fill=255)
    return np.asarray(large.reduce(_OVERSAMPLING), np.float32) / 255
