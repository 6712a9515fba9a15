"""Scenes: shapes before a ground, both with textures; every part has a name."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from finetune.data.formulas.contours import Contour, draw_contour, random_contour
from finetune.data.formulas.fractals import Fractal, draw_fractal, random_fractal
from finetune.data.formulas.place import Place
from finetune.data.formulas.textures import (
    Texture,
    draw_texture,
    random_texture,
    smooth_texture,
)

Pixels = npt.NDArray[np.uint8]
Colours = npt.NDArray[np.floating[Any]]
Kind = Literal["fractals", "contours", "textures", "scenes"]

_CLOUDS = 16
_SATURATIONS = np.array([0, 0, 0.5, 0.5, 0.5, 1, 1, 1], np.float32)


@dataclass(frozen=True)
class Scenes:
    """Numbered images of one kind.

    Attributes:
        kind: ``fractals``, ``contours`` and ``textures`` show one thing each; ``scenes`` a ground
            with 1 to 3 shapes, all with textures.
        side_px: of the square images.
        seed: of the classes and the images.
        num_fractals: classes.
        num_contours: classes.
        num_textures: classes.
    """

    kind: Kind
    side_px: int = 64
    seed: int = 0
    num_fractals: int = 200
    num_contours: int = 200
    num_textures: int = 200

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name all classes that images of this kind can show, in natural order."""
        counts = {
            "contour": self.num_contours,
            "fractal": self.num_fractals,
            "texture": self.num_textures,
        }
        return tuple(
            f"{name}_{index:03}"
            for name, count in counts.items()
            if self.kind in ("scenes", f"{name}s")
            for index in range(count)
        )

    def draw(self, index: int) -> tuple[Pixels, tuple[str, ...]]:
        """Draw image number ``index``.

        Returns:
            ``[side_px, side_px, 3]`` RGB, and the names of what it shows, in natural order.
        """
        rng = np.random.default_rng([self.seed, 1, index])
        shown: set[str] = set()
        ground = self._textured(rng, shown, 0.8 if self.kind == "scenes" else 0.0)
        if self.kind == "textures":
            ground = self._textured(rng, shown, 1.0)
        shapes = int(rng.integers(1, 4)) if self.kind == "scenes" else 1
        for _ in range(shapes if self.kind != "textures" else 0):
            ground = self._before(ground, rng, shown)
        return _photographed(ground, rng), tuple(sorted(shown))

    def _before(self, ground: Colours, rng: np.random.Generator, shown: set[str]) -> Colours:
        """Put a shape before what is there."""
        is_scene = self.kind == "scenes"
        low, high = (0.15, 0.85) if is_scene else (0.4, 0.6)
        place = Place(
            self.side_px,
            self.side_px * rng.uniform(low, high, 2),
            self.side_px * rng.uniform(0.18 if is_scene else 0.28, 0.46),
        )
        if self.kind == "fractals" or (is_scene and rng.random() < 0.5):
            number = int(rng.integers(self.num_fractals))
            shown.add(f"fractal_{number:03}")
            mask = draw_fractal(self._fractals[number], rng, place)
            filling = self._textured(rng, shown, 0.0)
        else:
            number = int(rng.integers(self.num_contours))
            shown.add(f"contour_{number:03}")
            mask = draw_contour(self._contours[number], rng, place)
            filling = self._textured(rng, shown, 0.6 if is_scene else 0.0)
        scene: Colours = ground + mask[..., None] * (filling - ground)
        return scene

    def _textured(self, rng: np.random.Generator, shown: set[str], chance: float) -> Colours:
        """Fill the image with a texture that has a name, or with clouds, between two colours."""
        if rng.random() < chance:
            number = int(rng.integers(self.num_textures))
            shown.add(f"texture_{number:03}")
            texture = self._textures[number]
        else:
            texture = self._clouds[int(rng.integers(_CLOUDS))]
        first, second = _two_colours(rng)
        field = draw_texture(texture, rng, side_px=self.side_px)
        colours: Colours = first + (second - first) * field[..., None]
        return colours

    @cached_property
    def _fractals(self) -> Sequence[Fractal]:
        rng = np.random.default_rng([self.seed, 2])
        return [random_fractal(rng) for _ in range(self.num_fractals)]

    @cached_property
    def _contours(self) -> Sequence[Contour]:
        rng = np.random.default_rng([self.seed, 3])
        return [random_contour(rng) for _ in range(self.num_contours)]

    @cached_property
    def _textures(self) -> Sequence[Texture]:
        rng = np.random.default_rng([self.seed, 4])
        return [random_texture(rng, side_px=self.side_px) for _ in range(self.num_textures)]

    @cached_property
    def _clouds(self) -> Sequence[Texture]:
        rng = np.random.default_rng([self.seed, 5])
        return [smooth_texture(rng, side_px=self.side_px) for _ in range(_CLOUDS)]


def _two_colours(rng: np.random.Generator) -> Colours:
    """Draw two colours ``[2, 3]`` that differ; grey, pale or strong."""
    while True:
        colours: Colours = rng.random((2, 3), np.float32)
        grey = colours.mean(1, keepdims=True)
        colours = grey + (colours - grey) * _SATURATIONS[rng.integers(len(_SATURATIONS))]
        if np.abs(colours[0] - colours[1]).max() > 0.15:
            return colours


def _photographed(image: Colours, rng: np.random.Generator) -> Pixels:
    """Add what a camera adds: noise, or no colour."""
    if rng.random() < 0.5:
        noise = rng.standard_normal(image.shape, np.float32)
        image = image + np.float32(rng.uniform(0.01, 0.06)) * noise
    if rng.random() < 0.15:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)
