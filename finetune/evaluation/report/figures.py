"""The charts of a report, and what they show in numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from finetune.evaluation.report.charts import MOST_COLOURED, Mark, line_chart, reliability_chart
from finetune.evaluation.report.content import Content, Series
from finetune.evaluation.report.scales import Axis, axis_around

_ABBREVIATIONS = {"auroc": "AUROC", "f1": "F1", "lr": "learning rate", "average": "avg."}
# Written as in the field: 0.985, and not 98.5 %.
_NEVER_A_SHARE = ("val_loss", "val_auroc", "val_mean_average_precision")
_CHOSEN_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


class Answered(NamedTuple):
    """A row of the table of abstention: the share answered, and the error among these."""

    share: float
    error: float


def learning_charts(content: Content) -> list[Markup]:
    """Draw losses and scores by epoch; nothing for fewer than two epochs."""
    if len(content.epochs) < 2:
        return []
    keys = columns(content.epochs)
    losses = [key for key in keys if key.endswith("_loss")]
    scores = [key for key in keys if key.startswith("val_") and key not in losses]
    scores.sort(key=lambda key: key != content.monitor)  # the one that chose comes first
    charts = []
    if losses:
        charts.append(_loss_chart(content, losses))
    if scores:
        charts.append(_score_chart(content, scores[:MOST_COLOURED]))
    return charts


def ranking_charts(content: Content) -> list[Markup]:
    """Draw the ROC and the precision-recall curves."""
    charts = []
    if content.roc:
        charts.append(
            line_chart(
                content.roc,
                identity="roc",
                title="ROC: found, against false alarms",
                x=Axis("false alarms (1 − specificity)"),
                y=Axis("found (sensitivity)"),
                diagonal="guessing",
            )
        )
    if content.precision_recall:
        charts.append(
            line_chart(
                content.precision_recall,
                identity="precision-recall",
                title="Precision, against how many are found",
                x=Axis("found (recall)"),
                y=Axis("right among those named (precision)"),
            )
        )
    return charts


def reliability_charts(content: Content) -> list[Markup]:
    """Draw one reliability diagram per state of the calibration."""
    titles = {"before": "Before calibration", "after": "After calibration"}
    if len(content.reliability) == 1:
        titles = dict.fromkeys(titles, "Right answers, by the confidence in them")
    return [
        # The name is anybody's, and no part of an identity.
        reliability_chart(bins, identity=f"reliability-{index}", title=titles.get(name, name))
        for index, (name, bins) in enumerate(content.reliability.items())
    ]


def risk_chart(content: Content) -> Markup | None:
    """Draw the error among the answered by the share answered, with the chosen point."""
    curve = content.risk_coverage
    if curve is None or not curve.x:
        return None
    mark = None
    if content.abstain_at is not None:
        share, error = content.abstain_at
        words = f"chosen: {100 * share:.1f} % answered, {100 * error:.1f} % wrong"
        mark = Mark(share, words, error)
    highest = max((error for error in curve.y if math.isfinite(error)), default=0.0)
    return line_chart(
        [Series("error among the answered", curve.x, curve.y)],
        identity="risk",
        title="Fewer answers, fewer mistakes",
        x=Axis("share of images that are answered"),
        y=Axis("wrong among the answered", 0.0, max(0.02, 1.15 * highest)),
        mark=mark,
        names="none",
    )


def answered_rows(curve: Series | None) -> list[Answered]:
    """Give the curve's points nearest to round shares, most answered first."""
    points = [] if curve is None else list(zip(curve.x, curve.y, strict=True))
    finite = [point for point in points if all(map(math.isfinite, point))]
    if not finite:
        return []
    nearest = [min(finite, key=lambda point: abs(point[0] - share)) for share in _CHOSEN_SHARES]
    return [Answered(*point) for point in dict.fromkeys(nearest)]


def columns(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Name the columns that hold a finite number somewhere, without the epoch, in their order."""
    keys = dict.fromkeys(key for row in rows for key in row if key != "epoch")
    return [key for key in keys if any(math.isfinite(_number(row, key)) for row in rows)]


def in_words(key: str) -> str:
    """Write a column's name as the field does.

    >>> in_words("val_macro_f1"), in_words("val_loss"), in_words("lr")
    ('macro F1', 'validation loss', 'learning rate')
    """
    if key.endswith("_loss"):
        return {"train_loss": "training loss", "val_loss": "validation loss"}.get(
            key, key.replace("_", " ")
        )
    words = key.removeprefix("val_").split("_")
    return " ".join(_ABBREVIATIONS.get(word, word) for word in words)


def is_share(key: str) -> bool:
    """Tell whether a column of ``metrics.csv`` is written as a percentage."""
    return key.startswith("val_") and key not in _NEVER_A_SHARE


def _loss_chart(content: Content, keys: Sequence[str]) -> Markup:
    series = _by_epoch(content, keys)
    y = axis_around(
        "loss", [number for one in series for number in one.y], "number", from_zero=True
    )
    return _epoch_chart(content, series, y, "learning-loss", "Loss: falls as it learns")


def _score_chart(content: Content, keys: Sequence[str]) -> Markup:
    series = _by_epoch(content, keys)
    y = axis_around(
        "score", [number for one in series for number in one.y], "share", from_zero=False
    )
    return _epoch_chart(
        content, series, y, "learning-scores", "Scores on validation: rise as it learns"
    )


def _epoch_chart(
    content: Content, series: Sequence[Series], y: Axis, identity: str, title: str
) -> Markup:
    epochs = series[0].x
    mark = Mark(content.best_epoch, f"best: epoch {content.best_epoch}")
    return line_chart(
        series,
        identity=identity,
        title=title,
        x=Axis("epoch", min(epochs), max(max(epochs), min(epochs) + 1), "whole"),
        y=y,
        mark=mark if content.best_epoch in epochs else None,
        names="end",
    )


def _by_epoch(content: Content, keys: Sequence[str]) -> list[Series]:
    epochs = tuple(_number(row, "epoch") for row in content.epochs)
    return [
        Series(
            in_words(key).removesuffix(" loss"),
            epochs,
            tuple(_number(row, key) for row in content.epochs),
        )
        for key in keys
    ]


def _number(row: Mapping[str, float | None], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)
