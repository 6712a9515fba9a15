"""Fractals: the chaos game stays on the attractor, and a class can be told from its images."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.formulas.fractals import draw_fractal, fractal_points, random_fractal
from finetune.data.formulas.place import Place

SIDE_PX = 64
MIDDLE = Place(SIDE_PX, np.array([32.0, 32.0]), 25.0)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_every_map_contracts_and_the_attractor_fills_its_frame(seed):
    fractal = random_fractal(np.random.default_rng(seed))
    assert 2 <= len(fractal.matrices) <= 4
    assert np.linalg.svd(fractal.matrices, compute_uv=False).max() < 1
    assert fractal.limits[-1] == 1
    assert (np.diff(fractal.limits) > 0).all()
    points = fractal_points(fractal, np.random.default_rng(1))
    assert np.isfinite(points).all()
    assert points.std(0).min() > 0.01


def test_the_maps_send_the_attractor_into_itself():
    """That is what an attractor is: each map of it lies on it (Barnsley's collage theorem)."""
    for seed in range(5):
        fractal = random_fractal(np.random.default_rng(seed))
        points = np.concatenate(
            [fractal_points(fractal, np.random.default_rng([seed, i])) for i in range(4)]
        )
        size = points.std(0).max()
        for matrix, shift in zip(fractal.matrices, fractal.shifts, strict=True):
            sent = points[::200] @ matrix.T + shift
            gaps = np.linalg.norm(sent[:, None] - points[None], axis=2).min(1)
            assert np.median(gaps) < 0.05 * size


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_a_drawing_is_ink_between_0_and_1_and_follows_its_seed(seed):
    fractal = random_fractal(np.random.default_rng(3))
    first = draw_fractal(fractal, np.random.default_rng(seed), MIDDLE)
    again = draw_fractal(fractal, np.random.default_rng(seed), MIDDLE)
    assert first.shape == (SIDE_PX, SIDE_PX)
    assert first.min() >= 0
    assert first.max() <= 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, draw_fractal(fractal, np.random.default_rng(seed + 1), MIDDLE))


def test_it_is_drawn_where_it_is_placed():
    fractal = random_fractal(np.random.default_rng(0))
    left = draw_fractal(
        fractal, np.random.default_rng(1), Place(SIDE_PX, np.array([12.0, 50.0]), 10.0)
    )
    y, x = np.average(np.indices(left.shape).reshape(2, -1), axis=1, weights=left.ravel())
    assert abs(x - 12) < 4
    assert abs(y - 50) < 4
