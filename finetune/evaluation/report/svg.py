"""Elements of a chart, with their texts escaped; how they look is the style sheet's, by class."""

from markupsafe import Markup

from finetune.evaluation.report.content import Value
from finetune.evaluation.report.wording import is_known

WIDTH, HEIGHT = 420, 290
"""Of a chart, in pixels before it is scaled to the page."""
NOTHING = Markup()

_SHAPES = (
    "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0",
    "M-3,-3h6v6h-6z",
    "M0,-4l4,7h-8z",
    "M0,-4l4,4l-4,4l-4,-4z",
    "M0,4l4,-7h-8z",
    "M-3,-3l6,6M3,-3l-6,6",
    "M-4,0h8M0,-4v8",
)


def figure_element(drawing: Markup, identity: str, title: str, text: str, legend: Markup) -> Markup:
    """Wrap a drawing: a title that is seen, and a text that is read aloud instead of the lines."""
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" '
        'aria-labelledby="{identity}-title {identity}-text">'
        '<title id="{identity}-title">{title}</title><desc id="{identity}-text">{text}</desc>'
        "{drawing}</svg>{legend}</figure>"
    ).format(
        title=title,
        text=text,
        identity=identity,
        drawing=drawing,
        legend=legend,
        width=WIDTH,
        height=HEIGHT,
    )


def text(x: float, y: float, words: str, anchor: str, name: str) -> Markup:
    """Write words at a place; ``anchor`` as in SVG, ``name`` is their class."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        name, px(x), px(y), anchor, words
    )


def rule(x1: float, x2: float, y1: float, y2: float) -> Markup:
    """Draw a line of the grid."""
    return Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        px(x1), px(x2), px(y1), px(y2)
    )


def marker(index: int, x: float, y: float) -> Markup:
    """Draw the marker of the line ``index``: a circle, a square, a triangle and so on."""
    return Markup('<path class="marker line-{}" d="{}" transform="translate({} {})"/>').format(
        index, _SHAPES[index % len(_SHAPES)], px(x), px(y)
    )


def px(number: float) -> str:
    """Write pixels as short as a tenth of them allows."""
    return f"{number:.1f}".removesuffix(".0")


def interval_strip(value: Value) -> Markup:
    """Draw a share in 0..1 and its interval on a strip from 0 to 100 %; nothing if undefined.

    It repeats what stands beside it in words, so that it is hidden from screen readers.
    """
    if value.value is None or not is_known(value.value):
        return NOTHING
    has_ends = value.low is not None and value.high is not None
    low, high = (value.low, value.high) if has_ends else (value.value, value.value)
    ends = [px(2 + 96 * min(max(end or 0.0, 0.0), 1.0)) for end in (low, high, value.value)]
    return Markup(
        '<svg class="strip" viewBox="0 0 100 10" aria-hidden="true" focusable="false">'
        '<line class="scale" x1="2" x2="98" y1="5" y2="5"/>'
        '<line class="range" x1="{}" x2="{}" y1="5" y2="5"/>'
        '<circle class="value" cx="{}" cy="5" r="2.6"/></svg>'
    ).format(*ends)
