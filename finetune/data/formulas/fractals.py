"""Fractals of iterated function systems: shapes with detail at every scale."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.formulas.place import Place

Points = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.floating[Any]]

_BURN_IN = 6
"""Steps after which a random start is on the attractor, as far as 64 pixels show it."""
_CHAINS, _STEPS = 600, 9
_OCCUPIED_CELLS = 40  # of 16 x 16: less is a line or a few dots, and looks like any other


@dataclass(frozen=True, slots=True)
class Fractal:
    """An iterated function system: ``x -> matrices[k] @ x + shifts[k]``, k by chance.

    Attributes:
        matrices: ``[N, 2, 2]``, contractions.
        shifts: ``[N, 2]``.
        limits: ``[N]`` cumulative chances; the last is 1.
    """

    matrices: Points
    shifts: Points
    limits: Points


def random_fractal(rng: np.random.Generator) -> Fractal:
    """Draw a system of 2 to 4 maps whose attractor fills enough of its frame.

    Source: Anderson and Farrell 2022, "Improving Fractal Pre-training": singular values whose
    weighted sum lies in the range where attractors look good; chances by determinants from
    Barnsley 1988.
    """
    while True:
        count = int(rng.integers(2, 5))
        values = _singular_values(rng, count)
        left, right = rng.uniform(0, 2 * np.pi, (2, count))
        signs = rng.choice([-1.0, 1.0], (count, 2))
        matrices = (_rotations(left) * values[:, None]) @ (_rotations(right) * signs[:, None])
        shares = np.maximum(np.abs(np.linalg.det(matrices)), 1e-3)
        fractal = Fractal(
            matrices.astype(np.float32),
            rng.uniform(-1, 1, (count, 2)).astype(np.float32),
            (np.cumsum(shares) / shares.sum()).astype(np.float32),
        )
        if _fills_its_frame(fractal_points(fractal, np.random.default_rng(0))):
            return fractal


def fractal_points(fractal: Fractal, rng: np.random.Generator) -> Points:
    """Play the chaos game in parallel: ``[P, 2]`` points of the attractor."""
    maps = np.searchsorted(
        fractal.limits, rng.random((_BURN_IN + _STEPS, _CHAINS), np.float32)
    ).clip(max=len(fractal.limits) - 1)
    (xx, xy), (yx, yy) = fractal.matrices.transpose(1, 2, 0)
    x, y = 2 * rng.random((2, _CHAINS), np.float32) - 1
    kept = np.empty((_STEPS, 2, _CHAINS), np.float32)
    for step, chosen in enumerate(maps):
        x, y = (
            xx[chosen] * x + xy[chosen] * y + fractal.shifts[chosen, 0],
            yx[chosen] * x + yy[chosen] * y + fractal.shifts[chosen, 1],
        )
        if step >= _BURN_IN:
            kept[step - _BURN_IN] = x, y
    return kept.transpose(0, 2, 1).reshape(-1, 2)


def draw_fractal(
    fractal: Fractal,
    rng: np.random.Generator,
    place: Place,
) -> Mask:
    """Draw one image of a class: the system disturbed, turned, mirrored and squeezed.

    Returns:
        ``[place.side_px, place.side_px]``, 0 where nothing is, up to 1.
    """
    disturbed = Fractal(
        fractal.matrices * rng.uniform(0.93, 1.05, (len(fractal.matrices), 1, 1)).astype("f4"),
        fractal.shifts + rng.normal(0, 0.04, fractal.shifts.shape).astype("f4"),
        fractal.limits,
    )
    points = fractal_points(disturbed, rng)
    spread = points.std(0).max() + 1e-6
    points = (points - points.mean(0)) / spread
    scale = (
        0.5 * place.radius_px * np.array([1.0, rng.uniform(0.7, 1)]) * rng.choice([-1.0, 1.0], 2)
    )
    turn = _rotations(rng.uniform(0, 2 * np.pi, 1))[0]
    placed = (points * scale.astype("f4")) @ turn.astype("f4") + place.centre_px.astype("f4")
    # A disturbance can let a system escape; what is not a place in the image is left out.
    inside = ((placed >= 0) & (placed < place.side_px)).all(1)
    x, y = placed[inside].astype(np.int64).T
    hits = np.bincount(y * place.side_px + x, minlength=place.side_px**2).reshape(
        place.side_px, place.side_px
    )
    ink: Mask = 1 - np.exp(np.float32(-rng.uniform(0.6, 1.6)) * hits.astype(np.float32))
    return ink


def _singular_values(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Draw ``[N, 2]`` with larger first, below 1, and ``sum(first + 2 second)`` as it should be."""
    while True:
        values = -np.sort(-rng.uniform(0.1, 1, (count, 2)), axis=1)
        wanted = rng.uniform(0.5 * (5 + count), 0.5 * (6 + count))
        values *= wanted / (values[:, 0] + 2 * values[:, 1]).sum()
        if values.max() < 1:
            return values


def _rotations(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)


def _fills_its_frame(points: Points) -> bool:
    spread = points.std(0)
    if not np.isfinite(points).all() or spread.min() < 1e-2 or spread.max() > 1e2:
        return False
    cells = ((points - points.mean(0)) / (2.2 * spread) + 1) * 8
    x, y = np.clip(cells, 0, 15.9).astype(np.int64).T
    return len(np.unique(16 * y + x)) > _OCCUPIED_CELLS
