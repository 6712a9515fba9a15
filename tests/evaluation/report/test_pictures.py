"""Pictures are small JPEG files of what they were made of."""

import io

import numpy as np
import PIL.Image
import pytest

from finetune.evaluation.report.pictures import overlay, picture


def _read(file: bytes) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(file))
    assert image.format == "JPEG"
    return image


def _smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [255 * y / height, 255 * x / width, np.full((height, width), 90)], axis=2
    ).astype(np.uint8)


def test_a_picture_is_small_and_looks_the_same() -> None:
    pixels = _smooth(320, 320)
    image = _read(picture(pixels))
    assert image.size == (160, 160)
    assert image.mode == "RGB"
    half = np.asarray(PIL.Image.fromarray(pixels).resize((160, 160))).astype(float)
    assert np.abs(np.asarray(image) - half).mean() < 4
    assert len(picture(pixels)) < 6000


@pytest.mark.parametrize(
    ("shape", "side", "size"),
    [((100, 400), 160, (160, 40)), ((400, 100), 80, (20, 80)), ((28, 28), 160, (28, 28))],
)
def test_the_longer_side_is_given_and_small_images_keep_theirs(
    shape: tuple[int, int], side: int, size: tuple[int, int]
) -> None:
    assert _read(picture(_smooth(*shape), side)).size == size


def test_a_grey_image_has_one_channel() -> None:
    grey = np.repeat(_smooth(64, 64)[:, :, :1], 3, axis=2)
    assert _read(picture(grey)).mode == "L"
    assert len(picture(grey)) < len(picture(_smooth(64, 64)))


def test_heat_is_yellow_where_strong_and_grey_where_absent() -> None:
    pixels = _smooth(160, 160)
    heat = np.zeros((160, 160))
    heat[:, 80:] = 1
    drawn = np.asarray(_read(overlay(pixels, heat))).astype(int)
    cold, hot = drawn[:, :70], drawn[:, 90:]
    assert np.abs(cold - cold.mean(axis=2, keepdims=True)).max() < 12
    assert (hot[:, :, 0] > hot[:, :, 2] + 60).all()
    assert (hot[:, :, 1] > hot[:, :, 2] + 60).all()
    luma = pixels[:, :70] @ [0.299, 0.587, 0.114]
    assert np.abs(cold.mean(axis=2) - luma).mean() < 4


def test_more_heat_is_brighter_on_a_dark_image() -> None:
    heat = np.tile(np.linspace(0, 1, 160), (160, 1))
    drawn = np.asarray(_read(overlay(np.full((160, 160, 3), 20, np.uint8), heat)).convert("L"))
    means = drawn.mean(axis=0)[::16]
    assert (np.diff(means) > -1).all()
    assert means[-1] > means[0] + 80


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_shapes_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        picture(pixels)


@pytest.mark.parametrize(
    "heat", [np.zeros((4, 5)), np.full((4, 4), 1.1), np.full((4, 4), -0.1), np.full((4, 4), np.nan)]
)
def test_maps_of_another_shape_or_range_are_refused(heat: np.ndarray) -> None:
    with pytest.raises(ValueError, match="heat"):
        overlay(np.zeros((4, 4, 3), np.uint8), heat)
