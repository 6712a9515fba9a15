"""The page of a comparison: what it says, and how it behaves in a browser."""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.report.comparison import (
    Comparison,
    Contender,
    Measure,
    Pair,
    render_comparison,
    write_duration,
    write_p,
)
from finetune.evaluation.report.content import Value


def contender(name: str, accuracy: float | None, standing: str, **changes: Any) -> Contender:
    interval = () if accuracy is None else (accuracy - 0.03, accuracy + 0.02)
    whole = Contender(
        name=name,
        run=f"runs/flowers/{name}",
        backbone="resnet18",
        image_size_px=224,
        dataset="flowers",
        images=153,
        metrics={"accuracy": Value(accuracy, *interval), "log_loss": Value(0.1582, 0.11, 0.21)},
        parameters=11_177_538,
        flops=3_627_122_688,
        latency_ms=12.5,
        megabytes=44.8,
        seconds=75.0,
        cost=0.025,
        standing=standing,  # type: ignore[arg-type]
    )
    return replace(whole, **changes)


def comparison(names: tuple[str, str, str] = ("large", "small", "tiny")) -> Comparison:
    return Comparison(
        title="3 models on flowers",
        summary=(f"{names[0]} is the best.", f"Not distinguishable: {names[1]}."),
        split="test",
        headline="accuracy",
        measures=(
            Measure("accuracy", "accuracy", "share that is right"),
            Measure("log_loss", "log loss", "in nats", False, False),
        ),
        contenders=(
            contender(names[0], 0.95, "best"),
            contender(names[1], 0.94, "equal", latency_ms=8.25, seconds=None, cost=None),
            contender(names[2], 0.8, "worse", parameters=900_000, flops=40_000_000),
        ),
        pairs=(
            Pair(
                *(names[0], names[1], 153, 153, 5, 3, Value(0.013, -0.02, 0.05), 0.73, 0.73),
                standing="equal",
                text=f"{names[1]} cannot be told apart.",
            ),
            Pair(
                *(names[0], names[2], 153, 153, 25, 2, Value(0.15, 0.1, 0.21), 0.0002, 0.0004),
                standing="worse",
                text=f"{names[0]} is better than {names[2]}.",
            ),
        ),
        failures=(("vgg16", "no weights"),),
        warnings=("Of validation.",),
        method=("By bootstrap.",),
        price_per_hour=1.2,
    )


def text_of(page: str) -> str:
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_page_says_who_is_best_and_why():
    text = text_of(render_comparison(comparison()))
    for words in (
        "3 models on flowers",
        "large is the best.",
        "Of validation.",
        "95.0 % (92.0 to 97.0)",
        "0.158 (0.110 to 0.210)",
        "not distinguishable from the best",
        "large is better than tiny.",
        "+1.3 (-2.0 to 5.0) 0.73 0.73 5 3 153",
        "+15.0 (10.0 to 21.0) < 0.001 < 0.001 25 2 153",
        "large resnet18 224 11.2 3.63 12.5 44.8 75 s 0.03",
        "small resnet18 224 11.2 3.63 8.2 44.8 – –",
        "the time of the training at 1.2 an hour",
        "vgg16 no weights",
        "By bootstrap.",
        "runs/flowers/tiny",
    ):
        assert words in text, words


def test_what_is_unknown_or_undefined_leaves_the_rest():
    whole = comparison()
    bare = tuple(replace(one, latency_ms=None, seconds=None, cost=None) for one in whole.contenders)
    unclear = replace(bare[1], flops=10**9, metrics={**bare[1].metrics, "accuracy": Value(None)})
    pair = Pair("large", "small", 20, text="They are not tested.")
    page = render_comparison(
        replace(
            whole,
            contenders=(bare[0], replace(unclear, standing="unknown")),
            pairs=(pair,),
            failures=(),
            price_per_hour=None,
        )
    )
    text = text_of(page)
    assert "undefined" in text
    assert "They are not tested." in text
    assert "Latency" not in text
    assert "an hour" not in text
    assert "GFLOPs: large: 95.0 % at 3.63." in text
    assert 'class="difference"' not in page
    assert "by size" not in text  # all have as many parameters


def test_one_model_has_nothing_to_be_compared_with():
    page = render_comparison(
        replace(comparison(), contenders=comparison().contenders[:1], pairs=())
    )
    assert "Is the difference real?" not in page
    assert 'class="badge best"' not in page


def test_a_single_test_is_not_corrected():
    whole = comparison()
    assert "p, corrected" in render_comparison(whole)
    one = replace(whole, contenders=whole.contenders[:2], pairs=whole.pairs[:1])
    assert "p, corrected" not in render_comparison(one)


def test_in_a_browser_it_is_quiet_sorts_and_fits(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "comparison.html"
    path.write_text(render_comparison(comparison()), encoding="utf-8")
    browser.open(path)
    for width in (1200, 800, 390, 320):
        browser.look(width=width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    names = (
        "[...document.querySelectorAll('table')[2].tBodies[0].rows].map(r => r.cells[0].innerText)"
    )
    assert browser.evaluate(names) == ["large", "small", "tiny"]
    heads = "document.querySelectorAll('table')[2].querySelectorAll('thead button')"
    latency = f"[...{heads}].find(head => head.textContent.startsWith('Latency'))"
    browser.evaluate(f"{latency}.click()")
    assert browser.evaluate(names) == ["small", "large", "tiny"]
    cost = f"[...{heads}].find(head => head.textContent.startsWith('Cost'))"
    browser.evaluate(f"{cost}.click(); {cost}.click()")
    assert browser.evaluate(names)[-1] == "small"  # unknown comes last either way
    assert browser.problems() == []


def test_what_names_hold_never_runs(
    browser: Any, tmp_path: Path, payloads: tuple[str, ...]
) -> None:
    everything = " ".join(payloads)
    whole = comparison((everything, f"{everything} 2", f"{everything} 3"))
    hostile = replace(
        whole,
        title=everything,
        summary=payloads,
        split=everything,
        measures=tuple(replace(one, name=everything, note=everything) for one in whole.measures),
        contenders=tuple(
            replace(one, backbone=everything, run=everything) for one in whole.contenders
        ),
        failures=tuple((text, text) for text in payloads),
        warnings=payloads,
        method=payloads,
    )
    path = tmp_path / "comparison.html"
    path.write_text(render_comparison(hostile), encoding="utf-8")
    browser.open(path)
    browser.evaluate("for (const head of document.querySelectorAll('th button')) head.click()")
    browser.evaluate("for (const node of document.querySelectorAll('details')) node.open = true")
    assert browser.evaluate("typeof hacked") == "undefined"
    for tag, count in (("script", 1), ("style", 1), ("iframe, object, base, img", 0)):
        assert browser.evaluate(f"document.querySelectorAll('{tag}').length") == count
    assert browser.problems() == []


@given(st.floats(0, 1))
def test_p_values_keep_their_side_of_the_border(p: float) -> None:
    text = write_p(p)
    if text.startswith("<"):
        assert p < 0.001
    else:
        assert abs(float(text) - p) <= 0.005 + 1e-9
        assert float(text) > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert write_duration(seconds) == text


def test_page_and_style_are_closed(content: Callable[..., Any]) -> None:
    page = render_comparison(comparison())
    assert "http://" not in page
    assert "https://" not in page
    assert " style=" not in page
