"""A picture of some images above what random augmentation makes of them."""

from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from finetune.run import replacing

TILE_PX = 176
_GAP_PX = 6
_SECTION_GAP_PX = 18  # below the originals
_FONT_PX = 17
_LINE_PX = 26
_INK = (30, 30, 30)
_PAPER = (255, 255, 255)
_FRAME = (200, 200, 200)

Pixels = npt.NDArray[np.uint8]


def write_contact_sheet(
    path: Path,
    *,
    originals: Sequence[Pixels],
    labels: Sequence[str],
    rows: Sequence[Sequence[Pixels]],
) -> None:
    """Write a PNG: one column per image, the original on top and its variants below.

    Args:
        path: whole, or not written at all.
        originals: ``[S, S, 3]`` RGB, at least one.
        labels: of the columns; in any script, shortened to a column's width.
        rows: for each epoch one variant ``[S, S, 3]`` of each original.

    Raises:
        OSError: the file cannot be written.
    """
    font = ImageFont.truetype(str(_find_font()), _FONT_PX)
    headings = ["original", *(f"epoch {number}" for number in range(1, len(rows) + 1))]
    left = 2 * _GAP_PX + max(round(font.getlength(heading)) for heading in headings)
    step = TILE_PX + _GAP_PX
    tops = [_LINE_PX + _GAP_PX]
    tops += [tops[0] + _SECTION_GAP_PX + step * number for number in range(1, len(rows) + 1)]
    sheet = Image.new("RGB", (left + step * len(originals), tops[-1] + step), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        middle = left + step * column + TILE_PX / 2
        draw.text((middle, _LINE_PX), shorten(label, font), _INK, font, anchor="mb")
    for heading, top, images in zip(headings, tops, [originals, *rows], strict=True):
        draw.text((left - _GAP_PX, top + TILE_PX / 2), heading, _INK, font, anchor="rm")
        for column, (image, _) in enumerate(zip(images, labels, strict=True)):
            corner = (left + step * column, top)
            sheet.paste(_tile(image), corner)
            draw.rectangle((*corner, corner[0] + TILE_PX - 1, top + TILE_PX - 1), outline=_FRAME)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def shorten(label: str, font: ImageFont.FreeTypeFont, *, width_px: int = TILE_PX) -> str:
    """Cut a text to a width; what is not printable becomes a question mark."""
    text = "".join(letter if letter.isprintable() else "�" for letter in label)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip() + "…"


def _tile(image: Pixels) -> Image.Image:
    """Bring an image to the size of a tile; the pixels of a small one stay visible as squares."""
    is_small = max(image.shape[:2]) < TILE_PX // 2
    method = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize((TILE_PX, TILE_PX), method)


def _find_font() -> Path:
    """Find DejaVu Sans, which has more scripts than Pillow's own font.

    Importing matplotlib for it would make folders in the user's home.
    """
    file = "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"
    return Path(str(distribution("matplotlib").locate_file(file)))
