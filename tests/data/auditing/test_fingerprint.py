import numpy as np
import pytest
from PIL import Image

from finetune.data.auditing.duplicates import MAX_DISTANCE
from finetune.data.auditing.fingerprint import SIZE, fingerprint


def photo(seed, width=160, height=120):
    """Return smooth shapes of several sizes, in colour."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for side in (3, 8, 24)
    ]
    return np.average([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8)


def distance(some, other):
    return float(np.linalg.norm(fingerprint(some).astype(float) - fingerprint(other).astype(float)))


def test_the_same_image_at_any_size_and_brightness():
    image = photo(1)
    assert fingerprint(image).shape == (SIZE,)
    assert fingerprint(image).dtype == np.float16
    for width, height in ((80, 60), (240, 180), (100, 100)):
        resized = np.asarray(Image.fromarray(image).resize((width, height)))
        assert distance(image, resized) < MAX_DISTANCE
    assert distance(image, (image * 0.8 + 20).astype(np.uint8)) < MAX_DISTANCE


def test_distinct_images_are_far_apart():
    distances = [distance(photo(seed), photo(seed + 1)) for seed in range(50)]
    assert min(distances) > 5 * MAX_DISTANCE


def test_another_colour_is_another_image():
    """A red and a blue flower of the same brightness."""
    luma = photo(2).mean(axis=2)
    is_flower = np.zeros(luma.shape, dtype=bool)
    is_flower[40:80, 60:100] = True
    red, blue = (np.repeat(luma[:, :, None] / 2, 3, axis=2) for _ in range(2))
    red[is_flower] += (76, 0, 0)
    blue[is_flower] += (0, 0, 199)
    blue[is_flower] -= 0.114 * 199 - 0.299 * 76
    assert distance(red.astype(np.uint8), blue.astype(np.uint8)) > 2 * MAX_DISTANCE


@pytest.mark.parametrize("noise", [0, 2])
def test_flat_images_have_none(noise):
    rng = np.random.default_rng(0)
    flat = 100 + rng.normal(0, noise, (50, 60, 3))
    assert fingerprint(flat.astype(np.uint8)) is None


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (3000, 2, 3)])
def test_odd_shapes(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    looks = fingerprint(image)
    assert looks is None or np.isfinite(looks).all()
