"""Textures: the spectrum that was asked for, other pixels each time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.formulas.textures import (
    Texture,
    draw_texture,
    random_texture,
    smooth_texture,
)

SIDE_PX = 64


def spectrum_of(field):
    return np.log1p(np.abs(np.fft.rfft2(field - field.mean())))[:, :32]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 32, 64, 96]))
def test_a_field_is_within_0_and_1_and_follows_its_seed(seed, side_px):
    for make in (random_texture, smooth_texture):
        texture = make(np.random.default_rng(seed), side_px=side_px)
        first = draw_texture(texture, np.random.default_rng(seed), side_px=side_px)
        again = draw_texture(texture, np.random.default_rng(seed), side_px=side_px)
        other = draw_texture(texture, np.random.default_rng(seed + 1), side_px=side_px)
        assert first.shape == (side_px, side_px)
        assert first.min() >= 0
        assert first.max() <= 1
        assert np.isfinite(first).all()
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_a_class_is_known_by_its_spectrum():
    """Of 20 classes, the nearest spectrum of another drawing is mostly that of the class."""
    textures = [random_texture(np.random.default_rng([0, i]), side_px=SIDE_PX) for i in range(20)]
    known, asked = (
        np.stack(
            [
                np.mean(
                    [
                        spectrum_of(
                            draw_texture(t, np.random.default_rng([start, i, k]), side_px=SIDE_PX)
                        )
                        for k in range(8)
                    ],
                    axis=0,
                ).ravel()
                for i, t in enumerate(textures)
            ]
        )
        for start in (1, 2)
    )
    nearest = np.linalg.norm(known[:, None] - asked[None], axis=2).argmin(0)
    assert (nearest == np.arange(20)).mean() >= 0.8


def test_a_single_frequency_makes_stripes_of_that_width():
    large_px = 96  # 64 and its room
    spectrum = np.zeros((large_px, large_px // 2 + 1), np.float32)
    spectrum[0, 12] = 1  # 12 periods on 96 pixels: one in 8, upright stripes
    field = draw_texture(Texture(spectrum, 0), np.random.default_rng(5), side_px=SIDE_PX)
    waves = np.abs(np.fft.fft2(field - field.mean(), (512, 512)))
    y, x = np.unravel_index(waves[:, :256].argmax(), (512, 256))
    period = 512 / np.hypot(min(y, 512 - y), x)
    assert 8 * np.exp(-0.15) < period < 8 * np.exp(0.25)
