"""Contours: as many lobes as the wave has periods, filled, where they were placed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.formulas.contours import Contour, draw_contour, random_contour
from finetune.data.formulas.place import Place

SIDE_PX = 128
MIDDLE = Place(SIDE_PX, np.array([64.0, 64.0]), 60.0)
ANGLES = np.linspace(0, 2 * np.pi, 160, endpoint=False)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_a_radius_is_never_below_0(seed):
    contour = random_contour(np.random.default_rng(seed))
    assert contour.waves.shape == (len(contour.amplitudes), 160)
    assert np.abs(contour.waves).max() <= 1
    assert contour.amplitudes.sum() <= 0.7 + 1e-9
    mask = draw_contour(contour, np.random.default_rng(seed), MIDDLE)
    assert mask.shape == (SIDE_PX, SIDE_PX)
    assert (mask.min(), mask.max()) == (0, 1)
    assert mask[64, 64] == 1


@pytest.mark.parametrize("frequency", [3, 5, 8, 12])
def test_a_wave_of_n_periods_has_n_lobes(frequency):
    contour = Contour(np.array([0.4]), np.sin(frequency * ANGLES)[None])
    mask = draw_contour(contour, np.random.default_rng(0), MIDDLE)
    area = np.pi * (0.75 * 60) ** 2
    y, x = np.indices(mask.shape) - 64
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    # How far out the ink reaches, by direction: its strongest wave is the contour's.
    reach = np.array(
        [
            radius[(mask > 0.5) & (np.abs(angle - centre) < np.pi / 90)].max()
            for centre in np.linspace(-np.pi, np.pi, 90, endpoint=False) + np.pi / 90
        ]
    )
    waves = np.abs(np.fft.rfft(reach - reach.mean()))
    waves[:3] = 0  # the squeeze is a wave of two periods
    assert waves.argmax() == frequency
    assert 0.5 * area < mask.sum() < 1.4 * area
