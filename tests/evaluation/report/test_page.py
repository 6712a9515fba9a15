"""The page as text: its parts, what is escaped, its policy, and its size."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from finetune.evaluation.report.content import Case, Content, Gallery, Value
from finetune.evaluation.report.page import MAX_BYTES, SECTIONS, render_report, write_report

_VOID = {"meta", "link", "img", "br", "circle", "line", "path", "polyline", "rect"}


class Outline(HTMLParser):
    """What a page is made of: its tags with their attributes, its text, and what stays open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def identities(self, tag: str) -> list[str | None]:
        return [attributes.get("id") for name, attributes in self.tags if name == tag]


def test_every_part_is_there_in_order_and_the_links_lead_to_it(
    content: Callable[..., Content],
) -> None:
    page = Outline(render_report(content()))
    assert page.open == []
    expected = [section.identity for section in SECTIONS]
    found = [identity for identity in page.identities("section") if identity]
    assert found == expected
    links = [a["href"] for tag, a in page.tags if tag == "a" and a["href"] != "#main"]
    assert links[: len(expected)] == [f"#{identity}" for identity in expected]
    assert [tag for tag, _ in page.tags if tag in ("header", "nav", "main", "footer")] == [
        "header",
        "nav",
        "main",
        "footer",
    ]


def test_empty_parts_and_their_links_are_left_out(smallest: Content) -> None:
    page = Outline(render_report(smallest))
    assert page.open == []
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["#main"]
    assert [one for one in page.identities("section") if one] == []
    assert "What to worry about" not in page.text


def test_numbers_are_percentages_with_intervals_and_undefined_is_said(
    content: Callable[..., Content],
) -> None:
    page = render_report(content())
    text = " ".join(Outline(page).text.split())
    assert "94.8 % (90.2 to 97.6)" in text
    assert "0.158 (0.110 to 0.214)" in text
    row = content().per_class[-1]
    assert row.auroc.value is None
    assert text.count("undefined") >= 3  # the metric on test, the AUROC, and the predictive value
    assert 'title="There are no images to compute it from."' in page


def test_a_headline_that_is_undefined_or_no_share_is_written_so(smallest: Content) -> None:
    row = smallest.headline
    assert "undefined" in Outline(render_report(smallest)).text
    plain = replace(row, is_share=False, values={"val": Value(0.158184, 0.11, 0.2)})
    page = render_report(replace(smallest, headline=plain))
    assert '<p class="big">0.158<span>' in page
    assert '<div class="scale">' not in page


def test_every_header_of_a_table_has_a_scope(content: Callable[..., Content]) -> None:
    page = Outline(render_report(content(tuple(map(str, range(12))))))
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert len(scopes) > 50
    assert set(scopes) == {"col", "row"}


def test_every_picture_and_chart_has_words(content: Callable[..., Content]) -> None:
    page = render_report(content())
    outline = Outline(page)
    assert all(a.get("alt") for tag, a in outline.tags if tag == "img")
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        is_told = 'role="img"' in drawing and "<title" in drawing and "<desc" in drawing
        assert is_told or 'aria-hidden="true"' in drawing


@pytest.mark.parametrize(("count", "has_matrix"), [(2, True), (100, True), (101, False)])
def test_a_matrix_has_up_to_100_classes_and_else_a_list(
    content: Callable[..., Content], count: int, has_matrix: bool
) -> None:
    names = tuple(f"class {index}" for index in range(count))
    page = render_report(content(names, images=2000))
    assert ('<table class="matrix' in page) == has_matrix
    assert ("These images show" in page) == (count > 10)


def test_a_cell_shows_its_count_its_share_and_a_link_to_its_images(
    content: Callable[..., Content],
) -> None:
    given = content()
    cells = {(0, 1): given.cells[0, 1]}
    given = replace(given, confusion=((3, 1), (0, 5)), cells=cells)
    page = render_report(given)
    assert '<span class="count">1</span><span class="share">25.0 %</span>' in page
    assert '<td><span class="zero">0</span></td>' in page
    link = re.search(r'<a href="#(cell-0-1)"', page)
    assert link
    assert f'id="{link[1]}"' in page


def test_nothing_hostile_is_left_unescaped(hostile: Content, payloads: tuple[str, ...]) -> None:
    page = render_report(hostile)
    assert len(payloads) >= 20
    for payload in payloads:
        if "<" in payload or '"' in payload:
            assert payload not in page
    outline = Outline(page)
    assert outline.open == []
    assert [tag for tag, _ in outline.tags if tag in ("script", "style")] == ["style", "script"]
    names = {name for _, attributes in outline.tags for name in attributes}
    assert not any(name.startswith("on") for name in names)
    assert not names & {"style", "srcdoc", "action", "formaction", "xlink:href"}
    assert all(a["href"] == "data:," for tag, a in outline.tags if tag == "link")
    assert all(str(a["href"]).startswith("#") for tag, a in outline.tags if tag == "a")
    for attributes in (a for tag, a in outline.tags if tag == "img"):
        assert re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", str(attributes["src"]))
    # It is all there as text, and templates in it are not filled.
    assert "{{7*191}}" in outline.text
    assert "1337" not in outline.text


def test_names_that_are_not_utf8_are_written_as_in_tables(
    content: Callable[..., Content], tmp_path: Path
) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    lone = "\ud83d"
    given = content((name, lone))
    path = tmp_path / "report.html"
    write_report(replace(given, title=name), path)
    page = path.read_text(encoding="utf-8")
    assert "<title>caf\\xe9.jpg</title>" in page
    assert "\\ud83d" in page


def test_the_largest_page_is_smaller_than_the_limit_and_says_what_it_lacks(
    content: Callable[..., Content],
) -> None:
    given = content(tuple(map(str, range(30))), images=2000)
    full = render_report(given)
    assert len(full.encode()) < MAX_BYTES
    assert "not shown, so that" not in full
    bare = render_report(given, max_bytes=0)
    assert "data:image/jpeg" not in bare
    limit = len(bare.encode()) + (len(full.encode()) - len(bare.encode())) // 4
    page = render_report(given, max_bytes=limit)
    assert len(page.encode()) <= limit
    outline = Outline(page)
    shown = [a for tag, a in outline.tags if tag == "figure" and "case" in str(a.get("class"))]
    all_cases = sum(len(gallery.cases) for gallery in given.galleries)
    all_cases += sum(map(len, given.cells.values()))
    left = sum(map(int, re.findall(r"(\d+) more (?:is|are) not shown", page)))
    assert left > 0
    assert len(shown) + left == all_cases


def test_ten_thousand_images_of_100_classes_are_fast_and_small(
    content: Callable[..., Content],
) -> None:
    names = tuple(f"class {index}" for index in range(100))
    given = content(names, images=10_000, points=1000)
    cases = tuple(
        Case(f"{k}.png", "a", "b", 0.5, os.urandom(6000), os.urandom(6000)) for k in range(500)
    )
    given = replace(given, galleries=(Gallery("Many", "Too many.", cases),))
    begin = time.perf_counter()
    page = render_report(given)
    seconds = time.perf_counter() - begin
    size = len(page.encode())
    print(f"\n10,000 images, 100 classes: {seconds:.2f} s, {size / 1e6:.2f} MB")
    assert size < MAX_BYTES
    assert seconds < 30


def test_a_page_that_cannot_be_written_leaves_nothing(
    content: Callable[..., Content], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="nowhere"):
        write_report(content(), tmp_path / "nowhere" / "report.html")
    write_report(content(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
