"""Charts are well-formed, in words too, and read without colour."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import binomtest

from finetune.evaluation.report.charts import (
    MOST_LINES,
    Mark,
    likely_share,
    line_chart,
    reliability_chart,
)
from finetune.evaluation.report.content import Bin, Series
from finetune.evaluation.report.scales import Axis
from finetune.evaluation.report.svg import HEIGHT, WIDTH

HOSTILE = "</title><script>hacked=1</script>\" onload='x'"


def _series(count: int, points: int = 20, name: str = "line {}") -> list[Series]:
    x = np.linspace(0, 1, points)
    return [
        Series(name.format(index), tuple(x), tuple(x ** (0.2 + index / count)))
        for index in range(count)
    ]


def _chart(series: list[Series], **how: object) -> str:
    given = {"identity": "one", "title": "A title", "x": Axis("across"), "y": Axis("up"), **how}
    return str(line_chart(series, **given))


def _lines(chart: str) -> list[str]:
    return re.findall(r'<polyline class="line line-(\w+)"', chart)


def test_a_chart_is_whole_and_told_in_words() -> None:
    root = ElementTree.fromstring(_chart(_series(2), diagonal="guessing"))
    (drawing,) = root.findall("svg")
    assert drawing.get("aria-labelledby") == "one-title one-text"
    assert drawing.findtext("title") == "A title"
    text = drawing.findtext("desc") or ""
    assert "up by across" in text
    assert "line 0 from 0.0 % to 100.0 %" in text
    words = [node.text for node in drawing.iter("text")]
    assert {"across", "up", "guessing", "0 %", "100 %"} <= set(words)


def test_everything_lies_within_the_frame() -> None:
    chart = _chart(_series(5), names="end")
    for path in re.findall(r'points="([^"]+)"', chart):
        for point in path.split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


def test_up_to_seven_lines_have_names_dashes_and_markers_of_their_own() -> None:
    chart = _chart(_series(7))
    assert _lines(chart) == [str(index) for index in range(7)]
    shapes = re.findall(r'class="marker line-(\d)" d="([^"]+)"', chart)
    assert len({shape for _, shape in shapes}) == 7
    assert len(set(shapes)) == 7  # one shape for each line
    assert all(f"<bdi>line {index}</bdi>" in chart for index in range(7))


def test_of_more_lines_the_three_lowest_are_named_and_the_rest_is_background() -> None:
    chart = _chart(_series(20))  # the larger the index, the smaller the area
    assert re.findall(r"<bdi>(.*?)</bdi>", chart) == ["line 19", "line 18", "line 17"]
    assert _lines(chart).count("rest") == 17
    assert "17 others, with more area below them" in chart


def test_of_very_many_lines_the_best_are_not_drawn_and_that_is_said() -> None:
    chart = _chart(_series(150, points=1000))
    assert len(_lines(chart)) == MOST_LINES
    assert "100 better ones are not drawn" in chart
    assert len(chart) < 150_000


def test_a_line_of_many_points_is_thinned_and_keeps_its_ends() -> None:
    chart = _chart(_series(1, points=100_000))
    (path,) = re.findall(r'<polyline class="line line-0" points="([^"]+)"', chart)
    assert 100 < len(path.split()) < 1700
    assert path.startswith("52,244 ")
    assert path.endswith(" 404,30")


def test_gaps_break_a_line_and_a_lone_point_is_marked() -> None:
    chart = _chart([Series("a", (0, 1, 2, 3), (0.1, math.nan, 0.3, 0.4))])
    assert len(_lines(chart)) == 2
    assert chart.count('class="marker') == 3 + 1  # and the one of the legend


def test_names_at_the_ends_do_not_touch() -> None:
    flat = [Series(f"name {index}", (0, 1), (0.5, 0.5)) for index in range(6)]
    chart = _chart(flat, names="end")
    labels = re.findall(r'<text class="name" x="[\d.]+" y="([\d.]+)"', chart)
    heights = sorted(map(float, labels))
    assert len(heights) == 6
    assert min(np.diff(heights)) >= 15
    assert '<ul class="legend">' not in chart


@pytest.mark.parametrize(("x", "anchor"), [(0.1, "start"), (0.9, "end")])
def test_a_mark_is_named_on_the_side_with_room(x: float, anchor: str) -> None:
    for mark in (Mark(x, "here"), Mark(x, "here", 0.5)):
        chart = _chart(_series(1), mark=mark, names="none")
        assert f'text-anchor="{anchor}">here</text>' in chart
        assert "here." in chart  # in its description


def test_names_are_escaped_everywhere() -> None:
    charts = [
        _chart(_series(2, name=HOSTILE), title=HOSTILE, mark=Mark(0.5, HOSTILE)),
        _chart(_series(2, name=HOSTILE), diagonal=HOSTILE, names="end"),
        _chart(_series(12, name=HOSTILE)),
        str(reliability_chart([Bin(0.5, 0.5, 2)], identity="one", title=HOSTILE)),
    ]
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert not list(root.iter("script"))
        assert "<script" not in chart


def test_reliability_has_a_circle_and_a_whisker_per_bin_with_images() -> None:
    bins = [Bin(0.55, 0.5, 4), Bin(0.0, 0.0, 0), Bin(0.95, 1.0, 100)]
    chart = str(reliability_chart(bins, identity="one", title="Before calibration"))
    ElementTree.fromstring(chart)
    radii = [
        float(r) for r in re.findall(r'class="bin" cx="[\d.]+" cy="[\d.]+" r="([\d.]+)"', chart)
    ]
    assert len(radii) == 2
    assert radii[0] < radii[1]
    assert chart.count('class="whisker"') == 2
    assert "at 95 % confidence 100 % of 100 images are right" in chart
    ElementTree.fromstring(str(reliability_chart([], identity="one", title="Before calibration")))


@pytest.mark.parametrize(("accuracy", "count"), [(0.0, 3), (0.75, 4), (1.0, 50), (0.9, 1000)])
def test_whiskers_are_exact_intervals(accuracy: float, count: int) -> None:
    expected = binomtest(round(accuracy * count), count).proportion_ci(0.95, "exact")
    assert likely_share(Bin(0.5, accuracy, count)) == pytest.approx(tuple(expected))
    assert likely_share(Bin(0.5, 0.0, 0)) == (0.0, 1.0)
