"""Pictures of a training run and of its mistakes, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from finetune.evaluation.canvas import drawing_style, save_figure, shorten
from finetune.evaluation.scores import ClassMetrics

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_PINK, _AMBER, _SKY, _BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
_ABSENT_COLOUR = "#DDDDDD"

_LOSSES = {"train_loss": ("training", _BLUE, "o"), "val_loss": ("validation", _ORANGE, "s")}
_SCORES = {
    "val_accuracy": ("accuracy", _BLUE, "o"),
    "val_macro_f1": ("macro F1", _ORANGE, "s"),
    "val_balanced_accuracy": ("balanced accuracy", _GREEN, "^"),
    "val_auroc": ("AUROC", _PINK, "D"),
    "val_sensitivity": ("sensitivity", _AMBER, "v"),
    "val_specificity": ("specificity", _SKY, "P"),
    "val_mean_average_precision": ("mean average precision", _BLACK, "X"),
}

_MAX_CLASSES_WITH_COUNTS = 20
_MAX_LABELLED_CLASSES = 100


def plot_learning_curves(
    rows: Sequence[Mapping[str, float | None]], path: Path, *, monitor: str, best_epoch: int
) -> None:
    """Draw losses, validation scores and learning rate by epoch, with the best epoch marked.

    Args:
        rows: one per epoch, with ``epoch``, ``train_loss``, ``val_loss``, ``lr`` and any of the
            training's metrics as ``val_<name>``; a number that is missing, ``None`` or not finite
            leaves a gap.
        path: the PNG file to write or to replace, whole or not at all; its folder exists.
        monitor: the key that chose the best epoch.
        best_epoch: its ``epoch``; nothing is marked if no row has it.
    """
    with drawing_style():
        figure = Figure(figsize=(15, 4.8), layout="constrained")
        loss, score, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
        _draw_series(loss, rows, _LOSSES)
        _draw_series(score, rows, _SCORES)
        _draw_series(rate, rows, {"lr": ("learning rate", _GREY, "o")})
        loss.set(title="Loss")
        score.set(title="Validation score")
        score.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        rate.set(title="Learning rate")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        for axes in (loss, rate):
            highest = axes.dataLim.ymax if axes.lines else 0
            axes.set_ylim(0, 1.08 * highest or 1)
        for axes in (loss, score, rate):
            _mark_best(axes, rows, best_epoch)
        for axes in (loss, score):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="best")
        figure.suptitle(_curves_title(rows, monitor, best_epoch))
        save_figure(figure, path)


def plot_confusion_matrix(
    matrix: Sequence[Sequence[int]], class_names: Sequence[str], path: Path
) -> None:
    """Draw which classes are taken for which; colour is the share of the true class's images.

    Up to 20 classes, cells show counts. Up to 100 classes, every class is named; beyond, every
    few. Long names are shortened in the middle. A true class without images has a grey row.

    Args:
        matrix: ``[C][C]`` counts as ``[true][predicted]``.
        class_names: ``C`` names.
        path: the PNG file to write or to replace, whole or not at all; its folder exists.

    Raises:
        ValueError: the matrix is not square, or not of the names' length.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    num_classes = len(class_names)
    if counts.shape != (num_classes, num_classes) or not num_classes:
        raise ValueError(
            f"matrix: got shape {list(counts.shape)}, expected [{num_classes}, {num_classes}]."
        )
    support = counts.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(np.where(support > 0, counts / np.maximum(support, 1), np.nan))
    with drawing_style():
        side = _cell_inches(num_classes) * num_classes
        figure = Figure(figsize=(side, side))
        axes = figure.add_axes((0, 0, 1, 1))
        colours = mpl.colormaps["Blues"].with_extremes(bad=_ABSENT_COLOUR)
        # The square root makes the few mistakes of a good model visible beside its diagonal.
        norm = PowerNorm(0.5, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap=colours, norm=norm, interpolation="nearest")
        scale = axes.inset_axes((1 + 0.15 / side, 0, 0.2 / side, 1))
        bar = figure.colorbar(image, cax=scale, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        bar.set_label("share of the true class's images")
        _label_classes(axes, class_names)
        if num_classes <= _MAX_CLASSES_WITH_COUNTS:
            _write_counts(axes, counts, shares)
        axes.set_title(_matrix_title(counts), pad=12)
        save_figure(figure, path)


def plot_labels(rows: Sequence[ClassMetrics], path: Path) -> None:
    """Draw how well each of several labels is found, the best on top: average precision and F1.

    Beyond 100 labels, only the 100 worst are drawn, for there is the work to do.

    Args:
        rows: one per label; what is undefined leaves a gap.
        path: the PNG file to write or to replace, whole or not at all; its folder exists.
    """
    worst_first = sorted(rows, key=lambda row: (row.average_precision or 0.0, row.f1 or 0.0))
    shown = worst_first[:_MAX_LABELLED_CLASSES]
    heights = range(len(shown))
    with drawing_style():
        figure = Figure(figsize=(10, 1.9 + 0.34 * len(shown)), layout="constrained")
        axes = figure.subplots()
        axes.hlines(heights, 0, 1, color="#E5E5E5", linewidth=0.8)
        for values, label, colour, marker in (
            ([row.average_precision for row in shown], "average precision", _BLUE, "o"),
            ([row.f1 for row in shown], "F1", _ORANGE, "s"),
        ):
            numbers = [math.nan if value is None else value for value in values]
            axes.plot(numbers, heights, marker, color=colour, label=label, clip_on=False, zorder=3)
        names = [f"{shorten(row.name)} ({row.support:,})" for row in shown]
        axes.set_yticks(heights, names)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(shown) - 0.4))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        left_out = (
            f", {len(rows) - len(shown)} better ones left out" if shown != worst_first else ""
        )
        axes.set_title(f"How well each label is found{left_out}\nin brackets: images that show it")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        save_figure(figure, path)


def _draw_series(
    axes: Axes,
    rows: Sequence[Mapping[str, float | None]],
    series: Mapping[str, tuple[str, str, str]],
) -> None:
    epochs = _column(rows, "epoch")
    for key, (label, colour, marker) in series.items():
        values = _column(rows, key)
        if np.isfinite(values).any():
            marked = marker if len(rows) <= 50 else ""
            axes.plot(epochs, values, color=colour, marker=marked, label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _column(rows: Sequence[Mapping[str, float | None]], key: str) -> npt.NDArray[np.float64]:
    values = (row.get(key) for row in rows)
    column = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isfinite(column), column, math.nan)


def _mark_best(axes: Axes, rows: Sequence[Mapping[str, float | None]], best_epoch: int) -> None:
    if best_epoch in _column(rows, "epoch"):
        axes.axvline(best_epoch, color=_GREY, linestyle="--", linewidth=1.2, label="best epoch")


def _curves_title(rows: Sequence[Mapping[str, float | None]], monitor: str, best_epoch: int) -> str:
    if not rows:
        return "No epoch has finished"
    value = next((row.get(monitor) for row in rows if row.get("epoch") == best_epoch), None)
    reached = "" if value is None else f" ({value:.4g})"
    return f"Best epoch: {best_epoch}, by {monitor}{reached}"


def _cell_inches(num_classes: int) -> float:
    for largest, inches in ((4, 1.3), (12, 0.65), (_MAX_CLASSES_WITH_COUNTS, 0.5), (50, 0.3)):
        if num_classes <= largest:
            return inches
    # Beyond 100 classes, the cells shrink and the picture does not grow.
    return 0.16 * min(1, _MAX_LABELLED_CLASSES / num_classes)


def _label_classes(axes: Axes, class_names: Sequence[str]) -> None:
    num_classes = len(class_names)
    step = math.ceil(num_classes / _MAX_LABELLED_CLASSES)
    ticks = list(range(0, num_classes, step))
    names = [shorten(class_names[tick]) for tick in ticks]
    size = 13 if num_classes <= 12 else 11 if num_classes <= 50 else 8
    axes.set_yticks(ticks, names, fontsize=size)
    # A letter of 13 points is about 0.11 inches wide.
    if max(map(len, names)) * 0.11 < _cell_inches(num_classes):
        axes.set_xticks(ticks, names, fontsize=size)
    elif num_classes <= _MAX_CLASSES_WITH_COUNTS:
        axes.set_xticks(
            ticks, names, fontsize=size, rotation=45, ha="right", rotation_mode="anchor"
        )
    else:
        axes.set_xticks(ticks, names, fontsize=size, rotation=90)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    if num_classes <= 50:
        edges = np.arange(num_classes + 1) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)


def _write_counts(
    axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> None:
    size = 16 if len(counts) <= 4 else 12 if len(counts) <= 12 else 9
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.3 else "black"
            text = f"{count:,}"
            # Five figures fill a cell at full size.
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                color=colour,
                fontsize=size * min(1, 5 / len(text)),
            )


def _matrix_title(counts: npt.NDArray[np.int64]) -> str:
    title = "Confusion matrix\nrows: true class, columns: predicted class"
    total, right = int(counts.sum()), int(np.trace(counts))
    if total:
        title += f"\n{right:,} of {total:,} images right ({right / total:.1%})"
    if not counts.any(axis=1).all():
        title += "\ngrey row: no image of that class"
    return title
