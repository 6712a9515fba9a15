import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from finetune.data.contact_sheet import TILE_PX, _find_font, shorten, write_contact_sheet

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
FONT = ImageFont.truetype(str(_find_font()), 17)


def plain(colour, size_px=32):
    return np.full((size_px, size_px, 3), colour, np.uint8)


def areas(path, colour):
    """Count the tiles of one colour, and say where the highest of them begins."""
    with PIL.Image.open(path) as image:
        assert image.format == "PNG"
        found = (np.asarray(image.convert("RGB")) == colour).all(2)
    rows = np.flatnonzero(found.any(1))
    return round(found.sum() / TILE_PX**2), rows[0]


@pytest.mark.parametrize("size_px", [1, 8, 224, 500])
@pytest.mark.parametrize("columns", [1, 2, 8])
def test_originals_stand_above_their_variants(tmp_path, size_px, columns):
    path = tmp_path / "sheet.png"
    write_contact_sheet(
        path,
        originals=[plain(RED, size_px)] * columns,
        labels=["a"] * columns,
        rows=[[plain(GREEN, size_px)] * columns, [plain(BLUE, size_px)] * columns],
    )
    tiles = [areas(path, colour) for colour in (RED, GREEN, BLUE)]
    assert [count for count, _ in tiles] == [columns] * 3
    tops = [top for _, top in tiles]
    assert tops[1] - tops[0] > TILE_PX
    assert tops[2] - tops[1] > TILE_PX
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_each_variant_stands_below_its_original(tmp_path):
    path = tmp_path / "sheet.png"
    write_contact_sheet(
        path,
        originals=[plain(RED), plain(GREEN)],
        labels=["red", "green"],
        rows=[[plain(RED), plain(GREEN)]],
    )
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    columns = [np.flatnonzero((pixels == colour).all(2).any(0)) for colour in (RED, GREEN)]
    assert all(np.ptp(column) < TILE_PX for column in columns)
    assert columns[0][-1] < columns[1][0]


def test_labels_are_drawn_within_their_columns(tmp_path):
    path = tmp_path / "sheet.png"

    def ink(*labels):
        tiles = [plain((255, 255, 255))] * len(labels)
        write_contact_sheet(path, originals=tiles, labels=labels, rows=[])
        with PIL.Image.open(path) as image:
            return (np.asarray(image.convert("L")) < 100)[:26]

    first = ink("cat", "")
    assert first.any()
    assert not ink("", "").any()
    both = ink("cat", "a name that is much too long for one column " * 3)
    gap = np.flatnonzero(both.any(0))
    assert np.array_equal(first[:, : first.shape[1] // 2], both[:, : first.shape[1] // 2])
    assert gap[-1] < both.shape[1]


def test_an_unequal_number_is_refused_and_nothing_left(tmp_path):
    image = plain(RED)
    for originals, labels, rows in (
        ([image], ["a", "b"], []),
        ([image, image], ["a"], []),
        ([image], ["a"], [[image, image]]),
        ([image], ["a"], [[]]),
    ):
        with pytest.raises(ValueError, match="zip"):
            write_contact_sheet(
                tmp_path / "sheet.png", originals=originals, labels=labels, rows=rows
            )
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=60))
def test_a_short_label_fits_and_begins_as_the_long_one(label):
    short = shorten(label, FONT)
    assert FONT.getlength(short) <= TILE_PX
    assert short.isprintable()
    if short.isascii() and not short.endswith("…"):
        assert short == label


@pytest.mark.parametrize(
    "label",
    ["", "Käfer", "蝴蝶 и бабочка", "قطة", "🐝 bee", "two\nlines", "not utf-8: \udcff", "<b>[red]"],
)
def test_names_in_any_script_are_drawn(tmp_path, label):
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, originals=[plain(RED)], labels=[label], rows=[])
    assert areas(path, RED)[0] == 1
    short = shorten(label, FONT)
    assert short == label.replace("\n", "�").replace("\udcff", "�")


def test_matplotlib_is_not_imported():
    # It would make folders in the user's home.
    program = (
        "import sys\n"
        "import finetune.data.contact_sheet as sheet\n"
        "assert sheet._find_font().is_file()\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="gone"):
        write_contact_sheet(
            tmp_path / "gone" / "sheet.png", originals=[plain(RED)], labels=["a"], rows=[]
        )
