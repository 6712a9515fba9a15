"""The page in a real browser: it is quiet, asks nobody, and its tables and cells answer."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from finetune.evaluation.report.content import Content
from finetune.evaluation.report.page import write_report


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


@pytest.fixture
def shown(browser: Any, tmp_path: Path) -> Callable[..., Any]:
    """Write a report and open it."""

    def show(content: Content) -> Any:
        path = tmp_path / "report.html"
        write_report(content, path)
        browser.open(path)
        return browser

    return show


@pytest.mark.parametrize("count", [2, 10, 100, 150])
def test_nothing_is_wrong_or_asked_or_cut_off(
    content: Callable[..., Content], shown: Callable[..., Any], count: int
) -> None:
    page = shown(content(names(count), images=1000))
    for width in (1200, 800, 390, 320):
        page.look(width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    # Every link leads somewhere on the page.
    assert page.evaluate("[...document.links].every(link => document.querySelector(link.hash))")
    identities = "[...document.querySelectorAll('[id]')].map(node => node.id)"
    assert page.evaluate(f"new Set({identities}).size == {identities}.length")
    assert page.evaluate("document.querySelectorAll('main > section').length") >= 14
    assert page.problems() == []


def test_several_labels_have_no_matrix(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    page = shown(content(names(10), is_multilabel=True))
    assert page.evaluate("document.getElementById('confusion')") is None
    assert page.evaluate("document.querySelector('a[href=\"#confusion\"]')") is None
    assert page.problems() == []


def test_what_names_hold_never_runs(hostile: Content, shown: Callable[..., Any]) -> None:
    page = shown(hostile)
    for step in (
        "for (const head of document.querySelectorAll('th button')) head.click()",
        "for (const link of document.querySelectorAll('a')) link.click()",
        "for (const node of document.querySelectorAll('details')) node.open = true",
        "for (const node of document.querySelectorAll('*'))"
        " node.dispatchEvent(new Event('mouseover'))",
    ):
        page.evaluate(step)
    assert page.evaluate("typeof hacked") == "undefined"
    for tag, count in (("script", 1), ("style", 1), ("iframe, object, base", 0), ("link", 1)):
        assert page.evaluate(f"document.querySelectorAll('{tag}').length") == count
    assert page.evaluate("[...document.images].every(image => image.src.startsWith('data:'))")
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every(node =>"
        " [...node.attributes].every(one => !/^on|^style$|^srcdoc$/.test(one.name)))"
    )
    assert page.problems() == []


def test_the_policy_stops_what_got_in(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    page = shown(content())
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"hacked=1\">');"
        "document.head.append(Object.assign(document.createElement('script'),"
        " {textContent: 'hacked = 1'})); var wait = new Promise(done => setTimeout(done, 200))"
    )
    page.send("Runtime.evaluate", expression="wait", awaitPromise=True)
    assert page.evaluate("typeof hacked") == "undefined"
    assert any("Content Security Policy" in problem for problem in page.problems())


COLUMN = "[...document.querySelectorAll('#classes tbody tr')].map(row => row.cells[{}].{})"


def test_a_click_sorts_and_a_key_sorts_back(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    page = shown(content(names(12)))
    head = "document.querySelectorAll('#classes thead th')[2]"
    recalls = COLUMN.format(2, "dataset.value")
    before = page.evaluate(recalls)
    page.evaluate(f"{head}.querySelector('button').click()")
    assert page.evaluate(f"{head}.getAttribute('aria-sort')") == "ascending"
    numbers = [float(text) for text in page.evaluate(recalls)]
    assert numbers == sorted(numbers)
    page.evaluate(f"{head}.querySelector('button').focus()")
    page.press("Enter")
    assert page.evaluate(f"{head}.getAttribute('aria-sort')") == "descending"
    assert [float(text) for text in page.evaluate(recalls)] == sorted(numbers, reverse=True)
    assert page.evaluate("document.querySelectorAll('#classes th[aria-sort]').length") == 1
    assert sorted(before) == sorted(page.evaluate(recalls))


def test_names_sort_as_people_count_and_undefined_comes_last_both_ways(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    page = shown(content(names(12)))
    heads = "document.querySelectorAll('#classes thead th')"
    page.evaluate(f"{heads}[0].querySelector('button').click()")
    assert page.evaluate(COLUMN.format(0, "textContent")) == list(names(12))
    for _ in range(2):
        page.evaluate(f"{heads}[5].querySelector('button').click()")
        assert page.evaluate(COLUMN.format(5, "dataset.value"))[-1] == ""


@pytest.mark.parametrize("count", [3, 150])
def test_a_cell_shows_its_images(
    content: Callable[..., Content], shown: Callable[..., Any], count: int
) -> None:
    page = shown(content(names(count), images=1500))
    link = "document.querySelectorAll('#confusion a')[1]"
    visible = "[...document.querySelectorAll('.cell')].filter(one => one.checkVisibility())"
    assert page.evaluate(f"{visible}.length") == 0
    page.evaluate(f"{link}.focus()")
    page.press("Enter")
    assert page.evaluate(f"{visible}.map(one => '#' + one.id)") == [page.evaluate(f"{link}.hash")]
    assert page.evaluate(f"{visible}[0].querySelector('img').checkVisibility()")
    assert page.evaluate(f"{link}.getAttribute('aria-current')") == "true"
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.evaluate("document.querySelectorAll('#confusion a')[0].click()")
    assert page.evaluate(f"{visible}.length") == 1
    assert page.evaluate(f"{link}.hasAttribute('aria-current')") is False
    assert page.problems() == []


def test_the_matrix_shows_counts_or_shares(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    page = shown(content(names(3)))
    words = "document.querySelector('.matrix td').innerText.trim()"
    assert page.evaluate(words).isdigit()
    page.evaluate("document.querySelectorAll('.choice button')[1].click()")
    assert page.evaluate(words).endswith(" %")
    pressed = "[...document.querySelectorAll('.choice button')].map(one => one.ariaPressed)"
    assert page.evaluate(pressed) == ["false", "true"]


def test_without_a_script_everything_is_readable(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    browser = shown(content(names(3)))
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        here = Path(browser.evaluate("location.pathname"))
        browser.open(here)
        assert browser.evaluate("document.querySelectorAll('main button').length") == 0
        assert browser.evaluate("[...document.querySelectorAll('.cell')].every(c => !c.hidden)")
        assert browser.evaluate(
            "[...document.querySelectorAll('.matrix td a')].every(a => a.innerText.includes('%'))"
        )
        assert browser.evaluate("document.body.innerText.includes('Choose a heading')") is False
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_paper_shows_every_image(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    page = shown(content(names(3)))
    page.look(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert page.evaluate("[...document.images].every(image => image.checkVisibility())")
    assert page.evaluate(
        "[...document.querySelectorAll('.choice')].every(one => !one.offsetParent)"
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0


_CONTRAST = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((x, i) => a * x + (1 - a) * below[i]);
  const behind = (node) => {
    const found = parts(getComputedStyle(node).backgroundColor);
    if (found[3] === undefined) return found;
    return over(found, node.parentElement ? behind(node.parentElement) : [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  for (const node of document.querySelectorAll("details")) node.open = true;
  for (const node of document.querySelectorAll(".cell")) node.hidden = false;
  const texts = [...document.querySelectorAll("body *:not(script)")].filter(node =>
    node.checkVisibility()
    && [...node.childNodes].some(one => one.nodeType == 3 && one.data.trim()));
  return texts.map(node => {
    const style = getComputedStyle(node);
    const colour = parts(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(node))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.className?.baseVal
      ?? node.className, node.tagName, node.textContent.slice(0, 30)];
  }).sort((a, b) => a[0] - b[0]);
})()
"""


def test_every_text_can_be_read(content: Callable[..., Content], shown: Callable[..., Any]) -> None:
    page = shown(content(names(5)))
    for scheme in ("light", "dark"):
        page.look(scheme=scheme)
        found = page.evaluate(_CONTRAST)
        assert len(found) > 200
        assert found[0][0] >= 4.5, found[:5]  # WCAG 2.2, level AA


def test_headings_do_not_skip_a_level(
    content: Callable[..., Content], shown: Callable[..., Any]
) -> None:
    page = shown(content(names(12)))
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(head => Number(head.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
