"""Characters of no alphabet: one to three bent strokes, upright, of any thickness."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from finetune.data.formulas.place import Place

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.floating[Any]]

_OVERSAMPLING = 2
_LOOP_CORNERS = 6
_STEPS = np.linspace(0, 1, 14)[:, None]


@dataclass(frozen=True, slots=True)
class Character:
    """A few strokes.

    Attributes:
        strokes: each ``[N, 2]``, the points that a smooth line goes through, in -1 to 1; N >= 2.
    """

    strokes: tuple[Points, ...]


def random_character(rng: np.random.Generator) -> Character:
    """Draw one to three strokes through 2 to 5 points each; a third of the bent ones are loops."""
    return Character(tuple(_random_stroke(rng) for _ in range(int(rng.choice([1, 2, 2, 3])))))


def draw_character(
    character: Character,
    rng: np.random.Generator,
    place: Place,
) -> Mask:
    """Draw one image of a class: by another hand, with another pen, hardly turned.

    Returns:
        ``[place.side_px, place.side_px]``, 0 outside and 1 inside, between on the edge.
    """
    turn, slant = rng.normal(0, 0.15, 2)
    cos, sin = np.cos(turn), np.sin(turn)
    hand = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, slant], [0, 1]])
    hand = hand * rng.uniform([0.7, 0.8], [1.1, 1.1])
    width = max(2, round(_OVERSAMPLING * place.radius_px * rng.uniform(0.1, 0.4)))
    large = Image.new("L", (place.side_px * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(large)
    for points in character.strokes:
        wobbling = points + rng.normal(0, 0.06, points.shape)
        line = _smooth(wobbling) @ hand.T * (0.8 * place.radius_px) + place.centre_px
        pen.line((line * _OVERSAMPLING).ravel().tolist(), fill=255, width=width, joint="curve")
    return np.asarray(large.reduce(_OVERSAMPLING), np.float32) / 255


def _random_stroke(rng: np.random.Generator) -> Points:
    points = rng.uniform(-1, 1, (int(rng.integers(2, 6)), 2))
    if len(points) == 2 or rng.random() >= 0.35:
        return points
    angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, _LOOP_CORNERS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    loop: Points = rng.uniform(-0.5, 0.5, 2) + circle * rng.uniform(0.25, 0.8, 2)
    return np.concatenate([loop, loop[:1]])


def _smooth(points: Points) -> Points:
    """Lay a line through the points.

    Source: Catmull and Rom 1974, with the outermost points mirrored at the ends.
    """
    before, after = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    all_points = np.concatenate([before[None], points, after[None]])
    pieces = []
    for first, start, end, last in zip(
        all_points, all_points[1:], all_points[2:], all_points[3:], strict=False
    ):
        bend = 2 * first - 5 * start + 4 * end - last
        twist = 3 * start - first - 3 * end + last
        pieces.append(
            0.5 * (2 * start + (end - first) * _STEPS + bend * _STEPS**2 + twist * _STEPS**3)
        )
    return np.concatenate(pieces)
