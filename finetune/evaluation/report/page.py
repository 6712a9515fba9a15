"""The page of a report: one file that a person reads, offline, on a screen or on paper."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from finetune.evaluation.canvas import shorten
from finetune.evaluation.report.budget import fit, without_pictures
from finetune.evaluation.report.content import Case, ClassRow, Content
from finetune.evaluation.report.document import read_asset, render_document
from finetune.evaluation.report.figures import (
    answered_rows,
    columns,
    in_words,
    is_share,
    learning_charts,
    ranking_charts,
    reliability_charts,
    risk_chart,
)
from finetune.evaluation.report.matrix import confused_pairs, shade
from finetune.evaluation.report.wording import is_known
from finetune.run import replacing

MAX_BYTES = 5_000_000
"""A page is never larger, as long as its text alone is not."""
MOST_CLASSES_IN_MATRIX = 100
MOST_ROWS = 1000
"""Of more classes, the table shows those that are found least."""
_MOST_PAIRS = 50
_MOST_PAIRS_BESIDE_MATRIX = 10
_FEW_CLASSES = 10
"""Up to so many, a matrix is read at a glance, and needs no list of its pairs."""


class Section(NamedTuple):
    """A part of the page: where links lead, its heading, how to read it, and if it is there."""

    identity: str
    title: str
    hint: str
    is_shown: Callable[[Content], bool]


SECTIONS = (
    Section(
        "images",
        "The images",
        "What was found when every image was opened and compared, before any training. Errors "
        "spoil the result, warnings may, and notes are for your information.",
        lambda content: bool(content.findings or content.audit_text),
    ),
    Section(
        "split",
        "How the images were divided",
        "A model is trained on one part of the images and measured on others that it has never "
        "seen. A class with few images in a column is hard to learn there, or hard to measure.",
        lambda content: bool(content.counts or content.split_text),
    ),
    Section(
        "learning",
        "How it learned",
        "An epoch is one pass over all training images. Loss is the error that training makes "
        "smaller: where it still falls on training but rises on validation, the model starts to "
        "learn by heart.",
        lambda content: bool(content.epochs),
    ),
    Section(
        "metrics",
        "All figures",
        "Each figure with its 95 % interval: with other images of the same kind, the figure would "
        "most likely lie within it. A wide interval means too few images, not a bad model.",
        lambda content: bool(content.metrics),
    ),
    Section(
        "classes",
        "Class by class",
        "Recall: of the images that show the class, how many are found. Precision: of the images "
        "that are said to show it, how many do. F1 is high only if both are.",
        lambda content: bool(content.per_class),
    ),
    Section(
        "confusion",
        "What is taken for what",
        "Each row is a true class, each column an answer. Right answers lie on the diagonal; any "
        "other number counts images that were taken for something else. The stronger the colour, "
        "the larger its share of the row.",
        lambda content: bool(content.confusion),
    ),
    Section(
        "ranking",
        "How well it tells the classes apart",
        "What every possible threshold would give, before one is chosen. A curve that runs close "
        "to the top edge is good; for ROC, the dashed diagonal is what guessing achieves.",
        lambda content: bool(content.roc or content.precision_recall),
    ),
    Section(
        "operating",
        "Where to draw the line",
        "An image counts as positive from a threshold on. A low one misses less and raises more "
        "false alarms. Sensitivity: positives that are found. Specificity: negatives that are "
        "left alone. Predictive value: how often the answer is right.",
        lambda content: bool(content.operating_points),
    ),
    Section(
        "reliability",
        "Can its probabilities be believed?",
        "A calibrated model is right in 80 % of the cases in which it says 80 %: its circles lie "
        "on the diagonal. Larger circles hold more images; the lines are 95 % intervals, and a "
        "circle whose line meets the diagonal may well be right.",
        lambda content: bool(content.reliability or content.calibration_text),
    ),
    Section(
        "abstention",
        "Answering only when sure",
        "If images on which the model is unsure are left to a person, fewer are answered (further "
        "left) and fewer of the answers are wrong (lower).",
        lambda content: bool(content.risk_coverage or content.abstention_text),
    ),
    Section(
        "sets",
        "Several answers instead of one",
        "A prediction set holds all classes that the image may show: one where the model is sure, "
        "several where it is not.",
        lambda content: bool(content.sets_text),
    ),
    Section(
        "galleries",
        "Images worth looking at",
        "What the network saw, beside a map of where it looked. Below, the training images that "
        "look most alike to it.",
        lambda content: any(gallery.cases for gallery in content.galleries),
    ),
    Section(
        "recipe",
        "The recipe",
        "Every setting that was chosen for you, and why. Each can be set by hand under this name.",
        lambda content: bool(content.decisions),
    ),
    Section(
        "facts",
        "Machine, time and versions",
        "What it ran on. Other hardware or versions may change the last digits.",
        lambda content: bool(content.facts),
    ),
    Section(
        "reproduce",
        "How to repeat it",
        "With the same images, these commands train the same model again.",
        lambda content: bool(content.reproduce),
    ),
    Section(
        "deploy",
        "How to use it",
        "Ways to get answers for new images.",
        lambda content: bool(content.deploy),
    ),
)


def render_report(content: Content, *, max_bytes: int = MAX_BYTES) -> str:
    """Make the page, as HTML.

    Pictures that would make it larger than ``max_bytes`` are left out: the last cases of the cells
    of the confusion matrix first, then the last ones of the galleries. The page says how many.

    Args:
        content: what is shown; parts that are empty are left out.
        max_bytes: of the page in UTF-8; its text stays, even where that alone is larger.
    """
    parts = _parts(content)
    text = _render(content, without_pictures(content), parts)
    shown = fit(content, max_bytes=max_bytes - len(text.encode("utf-8")))
    return _render(content, shown, parts)


def write_report(content: Content, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    page = render_report(content)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _render(content: Content, shown: Content, parts: dict[str, object]) -> str:
    sections = [section for section in SECTIONS if section.is_shown(content)]
    return render_document(
        "page.html",
        style=read_asset("page.css"),
        script=read_asset("page.js"),
        content=content,
        shown=shown,
        sections=sections,
        in_cells=_count(content.cells.values()) - _count(shown.cells.values()),
        **parts,
    )


def _parts(content: Content) -> dict[str, object]:
    """Work out what the template only places."""
    num_classes = len(content.class_names)
    has_matrix = 0 < len(content.confusion) <= MOST_CLASSES_IN_MATRIX
    most = _MOST_PAIRS_BESIDE_MATRIX if has_matrix else _MOST_PAIRS
    has_pairs = num_classes > _FEW_CLASSES
    return {
        "splits": list(dict.fromkeys(split for row in content.metrics for split in row.values)),
        "classes": _least_found(content.per_class),
        "matrix": shade(content.confusion) if has_matrix else [],
        "pairs": confused_pairs(content.confusion, most=most) if has_pairs else [],
        "most_counted": max((max(row, default=0) for row in content.counts.values()), default=0),
        "count_rows": min(num_classes, MOST_ROWS),
        "epoch_columns": [(key, in_words(key), is_share(key)) for key in columns(content.epochs)],
        "monitor": in_words(content.monitor) if content.monitor else "",
        "learning": learning_charts(content),
        "ranking": ranking_charts(content),
        "reliability": reliability_charts(content),
        "risk": risk_chart(content),
        "answered": answered_rows(content.risk_coverage),
        "shorten": shorten,
    }


def _least_found(rows: tuple[ClassRow, ...]) -> tuple[ClassRow, ...]:
    if len(rows) <= MOST_ROWS:
        return rows

    def found(row: ClassRow) -> float:
        return row.recall.value if is_known(row.recall.value) else 2.0  # undefined: last

    return tuple(sorted(rows, key=found)[:MOST_ROWS])


def _count(rows: Iterable[tuple[Case, ...]]) -> int:
    return sum(len(cases) for cases in rows)
