"""Characters: strokes through their points, where they were placed, never turned far."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.formulas.place import Place
from finetune.data.formulas.strokes import Character, draw_character, random_character

SIDE_PX = 64
MIDDLE = Place(SIDE_PX, np.array([32.0, 32.0]), 24.0)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_a_character_is_ink_near_its_place(seed):
    rng = np.random.default_rng(seed)
    character = random_character(rng)
    assert 1 <= len(character.strokes) <= 3
    assert all(len(points) >= 2 for points in character.strokes)
    mask = draw_character(character, rng, MIDDLE)
    assert mask.shape == (SIDE_PX, SIDE_PX)
    assert mask.min() == 0
    assert mask.max() == 1


def test_an_upright_stroke_stays_upright_whoever_writes():
    upright = Character((np.array([[0.0, -1.0], [0.0, 1.0]]),))
    for seed in range(50):
        mask = draw_character(upright, np.random.default_rng(seed), MIDDLE)
        y, x = np.nonzero(mask > 0.5)
        assert np.ptp(y) > np.ptp(x)
        assert np.ptp(y) > 0.8 * 0.8 * 24


def test_a_line_goes_through_its_points():
    points = np.array([[-0.8, -0.8], [0.8, -0.2], [-0.3, 0.8]])
    hits = np.zeros(3)
    for seed in range(30):
        mask = draw_character(Character((points,)), np.random.default_rng(seed), MIDDLE)
        x, y = np.rint(points * (0.8 * 24) * 0.92 + 32).astype(int).T
        near = [mask[b - 6 : b + 7, a - 6 : a + 7].max() for a, b in zip(x, y, strict=True)]
        hits += np.array(near) > 0.5
    assert hits.min() >= 27


def test_hands_differ_within_a_class():
    character = random_character(np.random.default_rng(3))
    masks = [draw_character(character, np.random.default_rng(seed), MIDDLE) for seed in range(20)]
    assert len({mask.tobytes() for mask in masks}) == 20
