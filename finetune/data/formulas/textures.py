"""Textures: noise of a given spectrum, bent by a curve. Stripes, grains, cells, clouds, veins."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.floating[Any]]

_CURVES = 6
_ROOM = 1.5
"""A texture is drawn so much larger than shown, so that it can be turned."""


@dataclass(frozen=True, slots=True)
class Texture:
    """A spectrum, and a curve.

    Attributes:
        spectrum: ``[S, S // 2 + 1]`` amplitudes, as `numpy.fft.irfft2` takes them.
        curve: of ``_bend``, from 0.
    """

    spectrum: Field
    curve: int


def random_texture(rng: np.random.Generator, *, side_px: int) -> Texture:
    """Draw a spectrum of 1 to 3 blobs over a falling floor, and a curve.

    Wavelengths are 3 to 33 pixels, whatever the side.

    Source: random-phase textures, Galerne et al. 2011; as images to pretrain on, Baradad et al.
    2021, "Learning to See by Looking at Noise".
    """
    count = int(rng.integers(1, 4))
    frequencies = np.exp(rng.uniform(np.log(0.03), np.log(0.35), count))
    angles = rng.uniform(0, np.pi, count)
    octaves, spreads = rng.choice([0.15, 0.3, 0.6], count), rng.choice([0.12, 0.3, 3.0], count)
    shares = rng.uniform(0.3, 1, count)
    radius, angle = _frequencies(round(_ROOM * side_px))
    spectrum = 0.0017 * radius ** -rng.uniform(0.8, 2.2)
    for index in range(count):
        off = np.mod(angle - angles[index] + np.pi / 2, np.pi) - np.pi / 2
        octave = (np.log(radius) - np.log(frequencies[index])) / octaves[index]
        spectrum += shares[index] * np.exp(-(octave**2 + (off / spreads[index]) ** 2) / 2) / radius
    spectrum[0, 0] = 0
    return Texture(spectrum.astype(np.float32), int(rng.integers(_CURVES)))


def smooth_texture(rng: np.random.Generator, *, side_px: int) -> Texture:
    """Draw clouds: a spectrum that falls with a power of the frequency, unbent."""
    radius, _ = _frequencies(round(_ROOM * side_px))
    spectrum = radius ** -rng.uniform(1.2, 2.4)
    spectrum[0, 0] = 0
    return Texture(spectrum.astype(np.float32), 0)


def draw_texture(texture: Texture, rng: np.random.Generator, *, side_px: int) -> Field:
    """Draw one image of a class: other phases, turned by some 12 degrees, a little larger or not.

    Returns:
        ``[side_px, side_px]`` in 0 to 1.
    """
    large_px = (texture.spectrum.shape[1] - 1) * 2
    noise = rng.standard_normal((2, *texture.spectrum.shape), np.float32)
    wave: Field = np.fft.irfft2(texture.spectrum * (noise[0] + 1j * noise[1]), (large_px, large_px))
    field = _bend(wave / (wave.std() + 1e-9), texture.curve)
    turn, zoom = rng.normal(0, 0.2), np.exp(rng.uniform(-0.2, 0.1))
    cos, sin, middle = zoom * np.cos(turn), zoom * np.sin(turn), side_px / 2
    x = large_px / 2 - cos * middle + sin * middle
    y = large_px / 2 - sin * middle - cos * middle
    turned = Image.fromarray(np.clip(0.35 * field + 0.5, 0, 1).astype(np.float32)).transform(
        (side_px, side_px),
        Image.Transform.AFFINE,
        (cos, -sin, x, sin, cos, y),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(turned)


def _frequencies(side_px: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give the frequency per pixel and the direction of each place of a half spectrum."""
    side_px += side_px % 2
    y, x = np.fft.fftfreq(side_px)[:, None], np.fft.rfftfreq(side_px)[None]
    return np.hypot(x, y) + 1e-6, np.arctan2(y, x)


def _bend(field: Field, curve: int) -> Field:
    bent = field
    match curve:
        case 1:
            bent = np.tanh(4 * field)
        case 2:
            bent = np.abs(field) * 1.5 - 1
        case 3:
            bent = np.sin(2.5 * field)
        case 4:
            bent = np.where(field > 1, np.float32(1.5), np.float32(-0.5)) + 0.3 * field
        case 5:
            bent = 0.7 - 2 * np.exp(-2 * np.abs(field))
    return bent
