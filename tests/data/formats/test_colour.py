"""Pixels of any type to uint8 RGB."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from finetune.data.formats.colour import find_range, grey_to_rgb, round_to_uint8, stretch, to_rgb
from finetune.errors import ImageError


def saved(image, file_format="PNG", **options):
    """Save and open an image: what it means may stand in the file's tags."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, file_format, **options
    )
    return opened(file.getvalue())


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def grey(values, **options):
    """Convert one row of values, and check that it is grey."""
    image = to_rgb(saved(np.array([values], **options), "TIFF"))
    assert np.array_equal(image[..., 0], image[..., 1])
    assert np.array_equal(image[..., 0], image[..., 2])
    return image[0, :, 0].tolist()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_colour_models(mode):
    black_to_white = Image.new("RGB", (30, 10), "white")
    black_to_white.paste("black", (0, 0, 15, 10))
    image = to_rgb(saved(black_to_white.convert(mode), "TIFF"))
    assert image[:, :15].max() <= 2
    assert image[:, 15:].min() >= 253


def test_16_bit_uses_the_full_range_whatever_the_image():
    values = [0, 128, 129, 257, 4095, 32768, 65535]
    expected = [0, 0, 1, 1, 16, 128, 255]
    assert grey(values, dtype=np.uint16) == expected
    assert grey(values[:5], dtype=np.uint16) == expected[:5]
    assert to_rgb(saved(np.array([values], dtype=np.uint16)))[0, :, 0].tolist() == expected
    big_endian = Image.frombytes("I;16B", (7, 1), np.array(values, ">u2").tobytes())
    assert to_rgb(saved(big_endian, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.25], [0, 64]),
        ([0.0, 1.5, 255.0], [0, 2, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([100.0, 300.0], [0, 255]),
        ([-5.0, -5.0], [0, 0]),
        ([700.0, 700.0], [0, 0]),
        ([-3e38, 3e38], [0, 255]),
    ],
)
def test_float(values, expected):
    assert grey(values, dtype=np.float32) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [0, 255]),
        ([0, 7, 255], [0, 7, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 50_000, 100_000], [0, 128, 255]),
        ([-(2**31), 2**31 - 1], [0, 255]),
    ],
)
def test_32_bit_integers(values, expected):
    assert grey(values, dtype=np.int32) == expected


def test_tiff_in_which_zero_is_white():
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert to_rgb(saved(values, "TIFF", tiffinfo={262: 0}))[0, :, 0].tolist() == [255, 254, 0]
    values = np.array([[0, 0.25, 1]], dtype=np.float32)
    assert to_rgb(saved(values, "TIFF", tiffinfo={262: 0}))[0, :, 0].tolist() == [255, 191, 0]


def test_tiff_of_packed_12_bits():
    width, height, bits, compression, photometric, offset, rows, length = (
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in (
            (256, 2),
            (257, 1),
            (258, 12),
            (259, 1),
            (262, 1),
            (273, 110),
            (278, 1),
            (279, 3),
        )
    )
    entries = width + height + bits + compression + photometric + offset + rows + length
    data = b"II*\0" + struct.pack("<IH", 8, 8) + entries + b"\0" * 4
    data += b"\0" * (110 - len(data)) + bytes([0xFF, 0xF8, 0x00])
    assert opened(data).mode == "I;16"
    assert to_rgb(opened(data))[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    with pytest.raises(ImageError, match="not finite"):
        to_rgb(saved(np.array([[0, value]], dtype=np.float32), "TIFF"))


def test_alpha_is_flattened_on_white():
    row = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 102, 255)):
        row.putpixel((x, 0), (100, 0, 50, alpha))
    expected = [[255, 255, 255], [193, 153, 173], [100, 0, 50]]
    assert to_rgb(saved(row))[0].tolist() == expected
    assert to_rgb(saved(row, "TIFF"))[0].tolist() == expected
    assert to_rgb(saved(row, "WEBP", lossless=True))[0].tolist() == expected
    light = row.convert("LA")
    values = to_rgb(saved(light))[0, :, 0].tolist()
    assert values == [255, round(0.4 * light.getpixel((1, 0))[0] + 153), light.getpixel((2, 0))[0]]


def test_transparent_colours_become_white():
    levels = np.array([[0, 100, 200]], dtype=np.uint8)
    white = [0, 255, 200]
    image = Image.fromarray(levels)
    assert to_rgb(saved(image, transparency=100))[0, :, 2].tolist() == white
    rgb = saved(image.convert("RGB"), transparency=(100, 100, 100))
    assert to_rgb(rgb)[0, :, 0].tolist() == white
    palette = image.convert("P")
    index = palette.getpixel((1, 0))
    assert to_rgb(saved(palette, transparency=index))[0, :, 1].tolist() == white
    assert to_rgb(saved(palette, "GIF", transparency=index))[0, :, 1].tolist() == white
    alphas = bytes(0 if i == index else 255 for i in range(256))
    assert to_rgb(saved(palette, transparency=alphas))[0, :, 1].tolist() == white
    assert to_rgb(saved(image.convert("1"), transparency=0)).min() == 255
    deep = saved(np.array([[0, 100, 51400]], dtype=np.uint16), transparency=100)
    assert to_rgb(deep)[0, :, 0].tolist() == white


finite = arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e300, 1e300))


@given(finite)
def test_a_stretch_uses_the_whole_range_and_keeps_the_order(values):
    shown = stretch(values)
    assert shown.dtype == np.uint8
    assert shown.shape == values.shape
    if values.min() < values.max():
        assert (shown.min(), shown.max()) == (0, 255)
        assert (np.diff(shown[np.argsort(values)].astype(int)) >= 0).all()
    else:
        assert not shown.any()


@given(finite)
def test_a_range_is_the_smallest_and_the_largest(values):
    assert find_range(values) == (min(values), max(values))


@pytest.mark.parametrize("values", [[0, np.nan], [np.inf, np.inf], [-1.7e308, 1.7e308]])
def test_a_range_is_finite(values):
    with pytest.raises(ImageError, match="not finite"):
        find_range(np.array(values))


def test_rounding_stays_within_a_byte():
    assert round_to_uint8(np.array([-7, 0.4, 0.6, 254.6, 300])).tolist() == [0, 0, 1, 255, 255]


def test_grey_has_three_equal_channels():
    levels = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    assert grey_to_rgb(levels).tolist() == [[[1] * 3, [2] * 3], [[3] * 3, [4] * 3]]
