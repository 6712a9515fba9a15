"""What every picture has in common."""

import warnings
from pathlib import Path

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from finetune.evaluation.canvas import drawing_style, save_figure, shorten


def draw(path: Path, text: str = "title") -> bytes:
    with drawing_style():
        figure = Figure(figsize=(1, 1))
        figure.subplots().set_title(text)
        save_figure(figure, path)
    return path.read_bytes()


def test_settings_of_the_process_stay_and_do_not_matter(tmp_path: Path) -> None:
    expected = draw(tmp_path / "a.png")
    ours = {"text.usetex": True, "figure.dpi": 37, "font.size": 3, "savefig.facecolor": "red"}
    with mpl.rc_context(ours):
        before, filters = dict(mpl.rcParams), list(warnings.filters)
        assert draw(tmp_path / "b.png") == expected
        assert dict(mpl.rcParams) == before
        assert warnings.filters == filters


def test_settings_come_back_after_an_error() -> None:
    def fail() -> None:
        with drawing_style():
            sizes.append(mpl.rcParams["font.size"])
            raise ValueError("no picture")

    sizes: list[float] = []
    with mpl.rc_context({"font.size": 3}):
        with pytest.raises(ValueError, match="no picture"):
            fail()
        assert (sizes, mpl.rcParams["font.size"]) == ([12], 3)


@pytest.mark.parametrize("text", ["$\\frac{$", "\U00012000 in cuneiform", "a_b^c <b>"])
def test_any_text_is_drawn(tmp_path: Path, text: str) -> None:
    assert draw(tmp_path / "text.png", text) != draw(tmp_path / "none.png", "")


def test_other_warnings_are_heard() -> None:
    with pytest.warns(UserWarning, match="another"), drawing_style():
        warnings.warn("another", UserWarning, stacklevel=1)


def test_a_picture_grows_around_its_labels(tmp_path: Path) -> None:
    sizes = []
    for text in ("short", "long" * 20):
        data = draw(tmp_path / "x.png", text)
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        sizes.append(int.from_bytes(data[16:20], "big"))
    assert sizes[1] > 2 * sizes[0]


def test_a_failed_picture_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(b"old")

    def fail(self: Figure, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(Figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@given(st.text(st.characters(exclude_categories=())))
def test_a_short_name_is_one_short_line(name: str) -> None:
    short = shorten(name)
    assert len(short) <= 24
    assert len(short.splitlines()) <= 1
    assert short.encode("utf-8").decode("utf-8") == short
    assert shorten(short) == short


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("", ""),
        ("bee", "bee"),
        ("x" * 24, "x" * 24),
        ("two\nlines\t and a tab", "two lines and a tab"),
        ("caf\udce9", "caf\\udce9"),
        ("a rather long name of class number 12", "a rather lon…s number 12"),
    ],
)
def test_both_ends_of_a_long_name_are_kept(name: str, short: str) -> None:
    assert shorten(name) == short
