"""Which images stay when there is no room for all."""

import re
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.report.budget import encoded_bytes, fit, without_pictures
from finetune.evaluation.report.content import Case, Content, Gallery, MetricRow, Value
from finetune.evaluation.report.document import jpeg_url
from finetune.evaluation.report.page import render_report


def _content(galleries: list[list[int]], cells: list[list[int]]) -> Content:
    def cases(sizes: list[int]) -> tuple[Case, ...]:
        return tuple(Case("a", "b", "c", 0.5, bytes(size)) for size in sizes)

    row = MetricRow("accuracy", "", True, {"val": Value(0.5)})
    return Content(
        "t", "s", "val", row, "", (), ("a", "b"), {}, (), "", (),
        galleries=tuple(Gallery("g", "t", cases(sizes)) for sizes in galleries),
        cells={(0, index): cases(sizes) for index, sizes in enumerate(cells)},
    )  # fmt: skip


def _sizes(content: Content) -> tuple[list[int], list[int]]:
    return [len(one.cases) for one in content.galleries], [*map(len, content.cells.values())]


def test_cells_lose_their_last_cases_first_and_then_galleries() -> None:
    given_content = _content([[3] * 3, [3] * 2], [[3] * 2, [3]])  # each picture is 4 characters
    assert _sizes(fit(given_content, max_bytes=32)) == ([3, 2], [2, 1])
    assert _sizes(fit(given_content, max_bytes=31)) == ([3, 2], [1, 1])
    assert _sizes(fit(given_content, max_bytes=24)) == ([3, 2], [1])
    assert _sizes(fit(given_content, max_bytes=20)) == ([3, 2], [])
    assert _sizes(fit(given_content, max_bytes=19)) == ([2, 2], [])
    assert _sizes(fit(given_content, max_bytes=8)) == ([1, 1], [])
    assert _sizes(fit(given_content, max_bytes=-1)) == ([0, 0], [])


rows = st.lists(st.lists(st.integers(0, 50), max_size=5), max_size=4)


@given(rows, rows, st.integers(-5, 600))
def test_what_stays_fits_and_is_a_beginning_of_each_row(
    galleries: list[list[int]], cells: list[list[int]], room: int
) -> None:
    full = _content(galleries, cells)
    kept = fit(full, max_bytes=room)
    pictures = [
        case.picture or b""
        for cases in [*(one.cases for one in kept.galleries), *kept.cells.values()]
        for case in cases
    ]
    assert sum(map(encoded_bytes, pictures)) <= max(room, 0)
    for gallery, shown in zip(full.galleries, kept.galleries, strict=True):
        assert shown.cases == gallery.cases[: len(shown.cases)]
    for cell, cases in kept.cells.items():
        assert cases
        assert cases == full.cells[cell][: len(cases)]
    if sum(encoded_bytes(bytes(size)) for row in galleries + cells for size in row) <= room:
        assert _sizes(kept)[0] == [len(row) for row in galleries]


@given(st.binary(max_size=100))
def test_the_size_of_a_picture_is_known_before_it_is_written(picture: bytes) -> None:
    assert len(jpeg_url(picture)) == len(jpeg_url(b"")) + encoded_bytes(picture)


def test_a_page_without_pictures_is_smaller_by_exactly_these(
    content: Callable[..., Content],
) -> None:
    full = content()
    page = render_report(full)
    bare = render_report(without_pictures(full))
    urls = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    assert len(page) == len(bare) + sum(map(len, urls))
    assert replace(without_pictures(full), galleries=(), cells={}) == replace(
        full, galleries=(), cells={}
    )
