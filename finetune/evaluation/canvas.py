"""How every picture is styled and saved.

Figures are built without ``pyplot``, so nothing global changes and no display is needed.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure

from finetune.run import replacing

_MAX_NAME_LENGTH = 24

# Fonts for scripts that matplotlib's own font lacks; those installed are asked in this order.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


@contextmanager
def drawing_style() -> Iterator[None]:
    """Set our fonts and lines for one picture, whatever the user's matplotlibrc says."""
    installed = set(font_manager.get_font_names())
    style: Any = {
        "font.family": ["DejaVu Sans", *(font for font in _FALLBACK_FONTS if font in installed)],
        "font.size": 12,
        "axes.titlesize": 14,
        "axes.titleweight": "bold",
        "axes.labelsize": 12,
        "figure.titlesize": 14,
        "lines.linewidth": 2,
        "lines.markersize": 6,
        "text.usetex": False,
        # Else "$" in a class name starts a formula.
        "text.parse_math": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # A class name in a script that no font here has is drawn as boxes; that is no failure.
        warnings.filterwarnings(
            "ignore", message=r"Glyph \d+ .* missing from", category=UserWarning
        )
        yield


def shorten(name: str) -> str:
    """Cut a long name in the middle, and put on one line what would break the layout."""
    # Line breaks would break the layout, and lone surrogates (names that are not UTF-8) the font.
    line = re.sub(r"\s+", " ", name).encode("utf-8", "backslashreplace").decode()
    if len(line) <= _MAX_NAME_LENGTH:
        return line
    # Both ends are kept, because names often differ in their last word only.
    tail = _MAX_NAME_LENGTH // 2 - 1
    return f"{line[: _MAX_NAME_LENGTH - tail - 1]}…{line[-tail:]}"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    with replacing(path) as temporary:
        # "tight" lets the picture grow around labels of any length.
        figure.savefig(
            temporary, format="png", dpi=130, facecolor="white", bbox_inches="tight", pad_inches=0.2
        )
