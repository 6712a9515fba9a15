"""Pictures of a training run and of its mistakes, as PNG files.

Figures are built without ``pyplot``, so nothing global changes and no display is needed.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from finetune.run import replacing

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_ABSENT_COLOUR = "#DDDDDD"

_LOSSES = {"train_loss": ("training", _BLUE, "o"), "val_loss": ("validation", _ORANGE, "s")}
_SCORES = {
    "val_accuracy": ("accuracy", _BLUE, "o"),
    "val_macro_f1": ("macro F1", _ORANGE, "s"),
    "val_balanced_accuracy": ("balanced accuracy", _GREEN, "^"),
}

_MAX_CLASSES_WITH_COUNTS = 20
_MAX_LABELLED_CLASSES = 100
_MAX_NAME_LENGTH = 24

# Fonts for scripts that matplotlib's own font lacks; those installed are asked in this order.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


def plot_learning_curves(
    rows: Sequence[Mapping[str, float | None]], path: Path, *, monitor: str, best_epoch: int
) -> None:
    """Draw losses, validation scores and learning rate by epoch, with the best epoch marked.

    Args:
        rows: one per epoch, with ``epoch``, ``train_loss``, ``val_loss``, ``val_accuracy``,
            ``val_macro_f1``, ``val_balanced_accuracy`` and ``lr``; a number that is missing,
            ``None`` or not finite leaves a gap.
        path: the PNG file to write or to replace, whole or not at all; its folder exists.
        monitor: the key that chose the best epoch.
        best_epoch: its ``epoch``; nothing is marked if no row has it.
    """
    with _style():
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
        _save(figure, path)


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
    with _style():
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
        _save(figure, path)


@contextmanager
def _style() -> Iterator[None]:
    """Set our fonts and lines for one picture, whatever the user's matplotlibrc says."""
    installed = set(font_manager.get_font_names())
    style: Any = {
        "font.family": ["DejaVu Sans", *(font for font in _FALLBACK_FONTS if font in installed)],
        "font.size": 12,
        "axes.titlesize": 14,
        "axes.titleweight": "bold",
        "axes.labelsize": 12,
        "figure.titlesize": 14,
        "lines.linewidth": 2,
        "lines.markersize": 6,
        "text.usetex": False,
        # Else "$" in a class name starts a formula.
        "text.parse_math": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # A class name in a script that no font here has is drawn as boxes; that is no failure.
        warnings.filterwarnings(
            "ignore", message=r"Glyph \d+ .* missing from", category=UserWarning
        )
        yield


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
    names = [_shorten(class_names[tick]) for tick in ticks]
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


def _shorten(name: str) -> str:
    # Line breaks would break the layout, and lone surrogates (names that are not UTF-8) the font.
    line = re.sub(r"\s+", " ", name).encode("utf-8", "backslashreplace").decode()
    if len(line) <= _MAX_NAME_LENGTH:
        return line
    # Both ends are kept, because names often differ in their last word only.
    tail = _MAX_NAME_LENGTH // 2 - 1
    return f"{line[: _MAX_NAME_LENGTH - tail - 1]}…{line[-tail:]}"


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


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        # "tight" lets the picture grow around labels of any length.
        figure.savefig(
            temporary, format="png", dpi=130, facecolor="white", bbox_inches="tight", pad_inches=0.2
        )
