"""Compositions: a shape before a ground, with textures and colours of its own, as one class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from finetune.data.formulas.contours import Contour, draw_contour, random_contour
from finetune.data.formulas.fractals import Fractal, draw_fractal, random_fractal
from finetune.data.formulas.place import Place
from finetune.data.formulas.strokes import Character, draw_character, random_character
from finetune.data.formulas.textures import (
    Texture,
    draw_texture,
    random_texture,
    smooth_texture,
)

Pixels = npt.NDArray[np.uint8]
Colours = npt.NDArray[np.floating[Any]]

_SHARES = (0.25, 0.2, 0.35, 0.2)
"""Of fractals, contours, characters, and textures alone."""
_SATURATIONS = np.array([0, 0, 0.5, 0.5, 1, 1, 1])
_LEAST_CONTRAST = 0.15
_LEAST_DIFFERENCE = 0.25


@dataclass(frozen=True, slots=True)
class Composition:
    """A class.

    Attributes:
        shape: what stands before the ground; None for a texture alone.
        ground: None is one colour.
        filling: of the shape, likewise.
        ground_colours: ``[2, 3]`` RGB in 0 to 1.
        filling_colours: likewise.
    """

    shape: Fractal | Contour | Character | None
    ground: Texture | None
    filling: Texture | None
    ground_colours: Colours
    filling_colours: Colours


@dataclass(frozen=True)
class Compositions:
    """Numbered images, each of one class.

    A class can be told by shape, by texture or by colour, and in part of the images only by some
    of them: a third has no colour or another one. So there is something to learn at each depth
    from the first step on, where a shape or a texture in arbitrary colours (`scenes`) leaves a
    small network at chance for long.

    Attributes:
        side_px: of the square images.
        seed: of the classes and the images.
        num_classes: how many.
        kind: what tells a table of these from other drawings.
    """

    side_px: int = 64
    seed: int = 0
    num_classes: int = 800
    kind: Literal["compositions"] = "compositions"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name all classes, in natural order."""
        return tuple(f"composition_{index:04}" for index in range(self.num_classes))

    def draw(self, index: int) -> tuple[Pixels, tuple[str]]:
        """Draw image number ``index``.

        Returns:
            ``[side_px, side_px, 3]`` RGB, and the name of its class.
        """
        rng = np.random.default_rng([self.seed, 6, index])
        number = int(rng.integers(self.num_classes))
        composition = self._compositions[number]
        image = self._filled(composition.ground, composition.ground_colours, rng)
        if composition.shape is not None:
            filling = self._filled(composition.filling, composition.filling_colours, rng)
            if np.abs(filling.mean((0, 1)) - image.mean((0, 1))).max() < _LEAST_CONTRAST:
                filling = 1 - filling
            is_character = isinstance(composition.shape, Character)
            for _ in range(1 if is_character else int(rng.integers(1, 3))):
                mask = self._mask(composition.shape, rng)
                image = image + mask[..., None] * (filling - image)
        return _photographed(image, rng), (f"composition_{number:04}",)

    def _mask(self, shape: Fractal | Contour | Character, rng: np.random.Generator) -> Colours:
        low, high = (0.35, 0.65) if isinstance(shape, Character) else (0.25, 0.75)
        place = Place(
            self.side_px,
            self.side_px * rng.uniform(low, high, 2),
            self.side_px * rng.uniform(0.25, 0.5),
        )
        match shape:
            case Fractal():
                return draw_fractal(shape, rng, place)
            case Contour():
                return draw_contour(shape, rng, place)
            case Character():
                return draw_character(shape, rng, place)

    def _filled(
        self, texture: Texture | None, colours: Colours, rng: np.random.Generator
    ) -> Colours:
        """Fill the image between two colours that are nearly those of the class."""
        first, second = colours + rng.normal(0, 0.06, (1, 3)) + rng.normal(0, 0.04, (2, 3))
        if texture is None:
            return np.broadcast_to(first, (self.side_px, self.side_px, 3))
        field = draw_texture(texture, rng, side_px=self.side_px)
        image: Colours = first + (second - first) * field[..., None]
        return image

    @cached_property
    def _compositions(self) -> Sequence[Composition]:
        return [
            self._random_composition(np.random.default_rng([self.seed, 7, number]))
            for number in range(self.num_classes)
        ]

    def _random_composition(self, rng: np.random.Generator) -> Composition:
        shape: Fractal | Contour | Character | None = None
        match int(rng.choice(len(_SHARES), p=_SHARES)):
            case 0:
                shape = random_fractal(rng)
            case 1:
                shape = random_contour(rng)
            case 2:
                shape = random_character(rng)
        plain = 0.6 if isinstance(shape, Character) else 0.2
        return Composition(
            shape,
            self._random_texture(rng, plain) if shape is not None else self._textured(rng),
            self._random_texture(rng, plain),
            _two_colours(rng),
            _two_colours(rng),
        )

    def _random_texture(self, rng: np.random.Generator, plain: float) -> Texture | None:
        if rng.random() < plain:
            return None
        if rng.random() < 0.65:
            return self._textured(rng)
        return smooth_texture(rng, side_px=self.side_px)

    def _textured(self, rng: np.random.Generator) -> Texture:
        return random_texture(rng, side_px=self.side_px)


def _two_colours(rng: np.random.Generator) -> Colours:
    """Draw two colours ``[2, 3]`` that differ; grey, pale or strong."""
    while True:
        colours = rng.random((2, 3))
        grey = colours.mean(1, keepdims=True)
        colours = grey + (colours - grey) * _SATURATIONS[rng.integers(len(_SATURATIONS))]
        if np.abs(colours[0] - colours[1]).max() > _LEAST_DIFFERENCE:
            return np.asarray(colours)


def _photographed(image: Colours, rng: np.random.Generator) -> Pixels:
    """Take the colour away, or change it, in part of the images, and add a camera's noise."""
    chance = rng.random()
    if chance < 0.3:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
        image = 1 - image if rng.random() < 0.3 else image
    elif chance < 0.45:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.5:
        image = image + rng.uniform(0.01, 0.06) * rng.standard_normal(image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)
