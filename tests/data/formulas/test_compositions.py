"""Compositions: one class each, told by shape, texture and colour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from finetune.data.formulas.compositions import Compositions

FEW = 12


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 1000))
def test_an_image_is_a_function_of_seed_and_number(index, seed):
    drawings = Compositions(32, seed=seed, num_classes=FEW)
    image, labels = drawings.draw(index)
    again, same = Compositions(32, seed=seed, num_classes=FEW).draw(index)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, again)
    assert labels == same
    assert set(labels) <= set(drawings.class_names)
    assert not np.array_equal(image, drawings.draw(index + 1)[0])


def test_every_class_appears_and_each_image_has_one():
    drawings = Compositions(16, num_classes=FEW)
    labels = [drawings.draw(index)[1] for index in range(300)]
    assert all(len(names) == 1 for names in labels)
    assert {name for names in labels for name in names} == set(drawings.class_names)
    assert len(drawings.class_names) == FEW


def test_a_third_of_the_images_has_no_colour():
    drawings = Compositions(16, num_classes=200)
    images = [drawings.draw(index)[0].astype(int) for index in range(600)]
    # A camera's noise is in colour, so the means tell: they are grey for a third and a few.
    spread = [np.ptp(image.mean((0, 1))) for image in images]
    assert 0.28 <= np.mean(np.array(spread) < 2) <= 0.55


@pytest.mark.parametrize("seed", [0, 1])
def test_the_mean_colour_tells_something_but_not_all(seed):
    drawings = Compositions(16, seed=seed, num_classes=FEW)
    drawn = [drawings.draw(index) for index in range(800)]
    means = np.array([image.mean((0, 1)) / 255 for image, _ in drawn])
    names = np.array([labels[0] for _, labels in drawn])
    model = LogisticRegression(C=100, max_iter=2000).fit(means[:500], names[:500])
    right = model.score(means[500:], names[500:])
    assert 2 / FEW < right < 0.9
