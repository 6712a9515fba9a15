import math
import os
import sys
from pathlib import Path
from typing import get_args

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from finetune.config import MetricName
from finetune.evaluation import plots
from finetune.evaluation.plots import plot_confusion_matrix, plot_labels, plot_learning_curves
from finetune.evaluation.scores import ClassMetrics

Row = dict[str, float | None]

BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)
GREY, GREY_ROW = (0x55, 0x55, 0x55), (0xDD, 0xDD, 0xDD)


def epochs(count: int) -> list[Row]:
    return [
        {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "val_loss": 2.2 / epoch,
            "val_accuracy": 1 - 0.5 / epoch,
            "val_macro_f1": 1 - 0.6 / epoch,
            "val_balanced_accuracy": 1 - 0.7 / epoch,
            "lr": 1e-3 / epoch,
        }
        for epoch in range(1, count + 1)
    ]


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def count_pixels(image: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((image == np.array(colour, dtype=np.uint8)).all(axis=2).sum())


def test_curves_show_every_series(tmp_path: Path) -> None:
    plot_learning_curves(epochs(8), tmp_path / "c.png", monitor="val_macro_f1", best_epoch=5)
    image = pixels(tmp_path / "c.png")
    for colour in (BLUE, ORANGE, GREEN, GREY):
        assert count_pixels(image, colour) > 500


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "no key"])
def test_curves_leave_out_what_is_not_known(tmp_path: Path, missing: float | str | None) -> None:
    rows = epochs(4)
    for row in rows:
        for key in ("val_loss", "val_macro_f1", "lr"):
            if isinstance(missing, str):
                del row[key]
            else:
                row[key] = missing
    plot_learning_curves(rows, tmp_path / "c.png", monitor="val_accuracy", best_epoch=4)
    image = pixels(tmp_path / "c.png")
    assert count_pixels(image, ORANGE) == 0
    assert count_pixels(image, BLUE) > 500


@pytest.mark.parametrize("number", [0, 1, 2, 300])
def test_curves_of_any_number_of_epochs(tmp_path: Path, number: int) -> None:
    plot_learning_curves(epochs(number), tmp_path / "c.png", monitor="val_loss", best_epoch=1)
    assert (count_pixels(pixels(tmp_path / "c.png"), BLUE) > 0) == (number > 0)


def test_the_monitor_is_no_formula(tmp_path: Path) -> None:
    plot_learning_curves(epochs(2), tmp_path / "c.png", monitor="$\\frac{$", best_epoch=1)
    assert count_pixels(pixels(tmp_path / "c.png"), BLUE) > 500


def test_curves_of_zeros(tmp_path: Path) -> None:
    rows: list[Row] = [{**row, "lr": 0.0, "train_loss": 0.0, "val_loss": 0.0} for row in epochs(3)]
    plot_learning_curves(rows, tmp_path / "c.png", monitor="val_loss", best_epoch=1)
    assert count_pixels(pixels(tmp_path / "c.png"), BLUE) > 500


def test_the_best_epoch_is_marked_once_it_is_known(tmp_path: Path) -> None:
    rows: list[Row] = [{**row, "lr": None} for row in epochs(5)]
    plot_learning_curves(rows, tmp_path / "with.png", monitor="val_loss", best_epoch=3)
    plot_learning_curves(rows, tmp_path / "without.png", monitor="val_loss", best_epoch=9)
    with_mark, without = pixels(tmp_path / "with.png"), pixels(tmp_path / "without.png")
    assert count_pixels(with_mark, GREY) > count_pixels(without, GREY) + 500


def test_every_metric_of_the_config_has_its_curve(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"epoch": epoch, f"val_{name}": epoch * place / 20}
        for epoch in (1, 2)
        for place, name in enumerate(get_args(MetricName), start=1)
    ]
    plot_learning_curves(rows, tmp_path / "c.png", monitor="val_loss", best_epoch=9)
    image = pixels(tmp_path / "c.png")
    assert {f"val_{name}" for name in get_args(MetricName)} == set(plots._SCORES)
    colours = {colour for _, colour, _ in plots._SCORES.values()}
    assert len(colours) == len(plots._SCORES)
    for colour in colours:
        red, green, blue = (int(255 * part) for part in mpl.colors.to_rgb(colour))
        assert count_pixels(image, (red, green, blue)) > 100, colour


def label(name: str, f1: float | None, precision: float | None, support: int = 9) -> ClassMetrics:
    return ClassMetrics(name, support, 9, 0.5, 0.5, f1, 0.5, precision)


def test_labels_show_both_scores_where_they_are_defined(tmp_path: Path) -> None:
    plot_labels([label("a", 0.3, 0.4), label("b", 0.6, 0.8)], tmp_path / "both.png")
    both = pixels(tmp_path / "both.png")
    plot_labels([label("a", None, 0.4), label("b", None, None, 0)], tmp_path / "one.png")
    one = pixels(tmp_path / "one.png")
    assert count_pixels(both, BLUE) > count_pixels(one, BLUE) > 50
    assert count_pixels(both, ORANGE) > count_pixels(one, ORANGE) > 50  # in the legend at least


@pytest.mark.parametrize("count", [1, 20, 300])
def test_labels_of_any_number_stay_a_picture_of_sane_size(tmp_path: Path, count: int) -> None:
    rows = [label(f"a long name of label number {i} $\\frac{{$", 0.5, 0.5) for i in range(count)]
    plot_labels(rows, tmp_path / "l.png")
    height, width, _ = pixels(tmp_path / "l.png").shape
    assert 200 < height < 5500
    assert 800 < width < 2000


def test_matrix_colours_the_share_of_the_true_class(tmp_path: Path) -> None:
    deepest = tuple(int(255 * part) for part in mpl.colormaps["Blues"](1.0)[:3])
    path = tmp_path / "m.png"
    plot_confusion_matrix([[3, 0], [0, 900]], ["a", "b"], path)
    both_right = count_pixels(pixels(path), deepest)
    plot_confusion_matrix([[3, 0], [450, 450]], ["a", "b"], path)
    one_right = count_pixels(pixels(path), deepest)
    assert one_right > 10_000
    assert both_right == pytest.approx(2 * one_right, rel=0.1)


def test_matrix_greys_a_class_without_images(tmp_path: Path) -> None:
    plot_confusion_matrix([[3, 0], [0, 0]], ["a", "b"], tmp_path / "grey.png")
    plot_confusion_matrix([[3, 0], [0, 1]], ["a", "b"], tmp_path / "blue.png")
    assert count_pixels(pixels(tmp_path / "grey.png"), GREY_ROW) > 10_000
    assert count_pixels(pixels(tmp_path / "blue.png"), GREY_ROW) < 500


@pytest.mark.parametrize("num_classes", [1, 20, 21, 120])
def test_matrix_of_any_size_stays_a_picture_of_sane_size(tmp_path: Path, num_classes: int) -> None:
    names = [f"a rather long name of class number {index}" for index in range(num_classes)]
    plot_confusion_matrix(np.eye(num_classes, dtype=int).tolist(), names, tmp_path / "m.png")
    height, width, _ = pixels(tmp_path / "m.png").shape
    assert 250 < height < 3500
    assert 250 < width < 3500


def test_matrix_without_any_image(tmp_path: Path) -> None:
    plot_confusion_matrix([[0, 0], [0, 0]], ["a", "b"], tmp_path / "m.png")
    assert count_pixels(pixels(tmp_path / "m.png"), GREY_ROW) > 10_000


@pytest.mark.parametrize(
    "name",
    [
        "$\\frac{$",  # as a formula, matplotlib raises
        "a_b^c <b>&amp;</b> %s {0} \\",
        "蜂 ミツバチ 벌 ผึ้ง مثال 🐝",
        "two\nlines\tand a tab",
        os.fsdecode(b"caf\xe9"),
        "x" * 300,
        "",
    ],
)
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    plot_confusion_matrix([[3, 1], [0, 9]], [name, "b"], tmp_path / "m.png")
    assert pixels(tmp_path / "m.png").shape[1] < 2000


def test_a_matrix_that_is_not_square_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \[2, 2\]"):
        plot_confusion_matrix([[1, 2]], ["a", "b"], tmp_path / "m.png")
    assert not list(tmp_path.iterdir())


def test_no_figure_is_registered_with_pyplot(tmp_path: Path) -> None:
    plot_confusion_matrix([[1, 0], [0, 1]], ["a", "b"], tmp_path / "m.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
