"""Stored values to shown ones, beside what pydicom makes of the same tags."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from finetune.data.formats.dicom_levels import apply_palette, apply_window, scale_bits, to_grey
from finetune.errors import ImageError

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100


def tags_of(**values):
    """Return the tags of an image as they stand in a little-endian file."""
    tags = Dataset()
    tags.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    tags.PhotometricInterpretation = "MONOCHROME2"
    tags.BitsStored = 16
    tags.PixelRepresentation = 0
    for name, value in values.items():
        setattr(tags, name, value)
    return tags


def grey(pixels, **values):
    return to_grey(np.asarray(pixels), tags_of(**values))


def lut(entries, *, first=0, bits=16, count=None):
    item = tags_of(LUTDescriptor=[len(entries) if count is None else count, first, bits])
    item.add_new(0x00283006, "US", entries)
    return [item]


def lut_of_bytes(data, *, count, is_little_endian=True):
    item = tags_of(LUTDescriptor=[count, 0, 16])
    item.set_original_encoding(is_implicit_vr=False, is_little_endian=is_little_endian)
    item.add_new(0x00283006, "OW", data)
    return [item]


# --- rescaling and windows --------------------------------------------------------------------


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_rescaled_and_windowed_as_pydicom_does(function):
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 8), dtype=np.uint16)
    tags = tags_of(
        BitsStored=12,
        RescaleSlope=2.5,
        RescaleIntercept=-1024,
        WindowCenter=[900, 40],
        WindowWidth=[2000, 80],
        VOILUTFunction=function,
    )
    low, high = -1024, 4095 * 2.5 - 1024
    theirs = apply_windowing(apply_modality_lut(pixels, tags), tags)
    assert np.abs(to_grey(pixels, tags) - 255 * (theirs - low) / (high - low)).max() <= 0.5


def test_a_negative_slope_inverts():
    window = {"WindowCenter": -549.5, "WindowWidth": 1101}
    shown = grey(RAMP, RescaleSlope=-1, RescaleIntercept=0, **window)
    assert np.array_equal(shown, grey(1100 - RAMP))


def test_a_slope_without_an_intercept_is_none():
    window = {"WindowCenter": 500, "WindowWidth": 400}
    assert np.array_equal(grey(RAMP, RescaleSlope=3, **window), grey(RAMP, **window))


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 5, "WindowWidth": -3},
        {"WindowCenter": 5, "WindowWidth": 0.5},
        {"WindowCenter": 5},
        {"WindowWidth": 5},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": [], "WindowWidth": []},
    ],
)
def test_a_window_of_no_width_is_none(window):
    assert np.array_equal(grey(RAMP, **window), np.rint(RAMP / 1100 * 255))


def test_a_narrow_window_counts_where_its_function_knows_it():
    shown = grey([[4, 5, 6]], WindowCenter=5, WindowWidth=0.5, VOILUTFunction="LINEAR_EXACT")
    assert shown.tolist() == [[0, 128, 255]]


def test_a_window_may_show_one_grey_only():
    assert set(np.unique(grey(RAMP, WindowCenter=-5000, WindowWidth=10))) == {255}
    assert set(np.unique(grey(RAMP, WindowCenter=5000, WindowWidth=10))) == {0}


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20),
    st.floats(-1e4, 1e4),
    st.floats(1, 1e4),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_a_window_rises_from_0_to_1(values, center, width, function):
    shown = apply_window(np.sort(values), center, width, function)
    assert (np.diff(shown) >= 0).all()
    assert 0 <= shown.min() <= shown.max() <= 1
    sides = apply_window(np.array([center - width, center + width]), center, width, function)
    assert sides[0] < 0.05
    assert sides[1] > 0.95


def test_a_window_of_width_1_is_a_step():
    assert apply_window(np.array([4.4, 4.5, 4.6]), 5, 1, "LINEAR").tolist() == [0, 0, 1]


def test_an_unknown_function_is_named():
    with pytest.raises(ImageError, match="VOILUTFunction 'CUBIC', expected one of LINEAR, "):
        apply_window(np.zeros(1), 0, 9, "CUBIC")


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ImageError, match="not finite"):
        grey(RAMP, RescaleSlope="1e308", RescaleIntercept="9e307")


# --- lookup tables ----------------------------------------------------------------------------


def test_tables_as_pydicom_has_them():
    pixels = np.random.default_rng(0).integers(0, 40, (9, 8), dtype=np.uint16)
    tags = tags_of(
        ModalityLUTSequence=lut(list(range(1000, 3000, 100)), first=5),
        VOILUTSequence=lut(list(range(0, 4000, 2)), first=500, bits=12),
        WindowCenter=0,
        WindowWidth=9,
    )
    theirs = apply_voi_lut(apply_modality_lut(pixels, tags), tags)
    assert np.array_equal(to_grey(pixels, tags), np.rint(theirs * (255 / 4095)))


def test_values_beyond_a_table_take_its_ends():
    item = lut([0, 128, 255], first=10, bits=8)
    assert grey([[0, 10, 11, 12, 300]], VOILUTSequence=item).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(("dtype", "is_little_endian"), [("<u2", True), (">u2", False)])
def test_a_table_of_words_has_the_byte_order_of_its_file(dtype, is_little_endian):
    data = np.array([0, 257, 65535], dtype).tobytes()
    item = lut_of_bytes(data, count=3, is_little_endian=is_little_endian)
    assert grey([[0, 1, 2, 300]], VOILUTSequence=item).tolist() == [[0, 1, 255, 255]]


def test_a_table_of_65536_entries_says_0():
    item = lut(list(range(65536)), count=0)
    assert grey([[0, 257, 65535]], VOILUTSequence=item).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("bits", [0, 17, 40])
def test_a_table_of_odd_bits_is_refused(bits):
    with pytest.raises(ImageError, match=f"table of {bits} bits, expected 1 to 16"):
        grey(RAMP, VOILUTSequence=lut([0], bits=bits))


@given(st.integers(1, 16))
def test_bits_are_scaled_to_a_byte(bits):
    most = 2**bits - 1
    assert scale_bits(np.array([0, most]), bits).tolist() == [0, 255]


# --- palettes ---------------------------------------------------------------------------------

COLOURS = np.array([[10, 20, 30, 40], [255, 0, 128, 1], [0, 0, 7, 255]])


def palette(bits, dtype, scale):
    tags = tags_of()
    for name, entries in zip(("Red", "Green", "Blue"), COLOURS, strict=True):
        data = (entries * scale).astype(dtype).tobytes()
        setattr(tags, f"{name}PaletteColorLookupTableDescriptor", [4, 1, bits])
        setattr(tags, f"{name}PaletteColorLookupTableData", data)
    return tags


@pytest.mark.parametrize(("bits", "dtype", "scale"), [(8, "u1", 1), (16, "<u2", 257)])
@pytest.mark.parametrize("last", [200, 300])  # 300 is more than a byte counts
def test_each_value_has_its_colour(bits, dtype, scale, last):
    pixels = np.array([[0, 1, 2], [3, 4, last]], dtype=np.uint16)
    shown = apply_palette(pixels, palette(bits, dtype, scale))
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, COLOURS.T[[[0, 0, 1], [2, 3, 3]]])


def test_a_palette_without_a_table_is_refused():
    with pytest.raises(ImageError, match="without a table, or with a segmented one"):
        apply_palette(RAMP, tags_of())
