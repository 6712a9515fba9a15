"""The picture of the learning-rate finder, as a PNG file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from finetune.evaluation.canvas import drawing_style, save_figure

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#555555"


def plot_rate_curve(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    path: Path,
    *,
    suggestion: float | None,
) -> None:
    """Draw the loss over the learning rate, each batch faint and their running mean bold.

    The axis of the loss shows the running mean whole; batches outside of it are cut off.

    Args:
        rates: ``n`` learning rates, rising, > 0.
        losses: ``n``, of single batches.
        smoothed: ``n``, their running mean.
        path: the PNG file to write or to replace, whole or not at all; its folder exists.
        suggestion: the rate to mark and to name; None for none.

    Raises:
        ValueError: the three are not of one length.
    """
    if not len(rates) == len(losses) == len(smoothed):
        raise ValueError(
            f"got {len(rates)} rates, {len(losses)} losses and {len(smoothed)} smoothed ones, "
            "expected as many of each."
        )
    with drawing_style():
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.plot(rates, losses, color=_BLUE, alpha=0.3, linewidth=1, label="one batch")
        axes.plot(rates, smoothed, color=_BLUE, linewidth=2.5, label="running mean")
        _style_axes(axes, rates, smoothed)
        if suggestion is not None and rates:
            _mark(axes, suggestion, float(np.interp(suggestion, rates, smoothed)))
        axes.set_title(
            "No learning rate stands out"
            if suggestion is None
            else f"Suggested learning rate of the head: {suggestion:.2g}"
        )
        axes.legend(loc="upper left", frameon=False)
        save_figure(figure, path)


def _style_axes(axes: Axes, rates: Sequence[float], smoothed: Sequence[float]) -> None:
    axes.set(xlabel="learning rate of the head", ylabel="training loss")
    if rates:
        axes.set_xlim(rates[0] / 1.2, rates[-1] * 1.2)
        low, high = min(smoothed), max(smoothed)
        room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - room, high + 2 * room)  # more on top, for the legend
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    # The style draws no formulas, and powers of ten would be some.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Axes, rate: float, loss: float) -> None:
    axes.axvline(rate, color=_ORANGE, linestyle="--", linewidth=1.2)
    axes.plot([rate], [loss], "o", color=_ORANGE, markersize=9, markeredgecolor="white", zorder=4)
    axes.annotate(
        f"{rate:.2g}",
        (rate, loss),
        xytext=(10, 8),
        textcoords="offset points",
        color=_ORANGE,
        weight="bold",
        zorder=4,
    )
