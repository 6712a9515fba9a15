"""Which charts a report has."""

import math
from collections.abc import Callable
from dataclasses import replace

from finetune.evaluation.report.content import Content, Series
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


def test_learning_needs_two_epochs_and_marks_the_best(content: Callable[..., Content]) -> None:
    loss, scores = learning_charts(content())
    assert "Loss" in loss
    assert "training" in loss
    assert "best: epoch 2" in loss
    assert "accuracy" in scores
    assert learning_charts(replace(content(), epochs=content().epochs[:1])) == []
    assert "best:" not in learning_charts(replace(content(), best_epoch=9))[0]


def test_learning_without_scores_or_numbers_leaves_charts_out(
    content: Callable[..., Content],
) -> None:
    rows = tuple({"epoch": float(k), "train_loss": 0.5, "val_accuracy": None} for k in range(3))
    assert len(learning_charts(replace(content(), epochs=rows))) == 1
    assert learning_charts(replace(content(), epochs=({"epoch": 0.0}, {"epoch": 1.0}))) == []


def test_columns_are_those_with_a_number() -> None:
    rows = [{"epoch": 0.0, "a": None, "b": 1.0}, {"epoch": 1.0, "a": math.nan, "c": 2.0}]
    assert columns(rows) == ["b", "c"]
    assert [in_words(key) for key in ("val_macro_f1", "train_loss", "lr", "val_auroc")] == [
        "macro F1",
        "training loss",
        "learning rate",
        "AUROC",
    ]


def test_charts_of_parts_that_are_empty_are_not_there(smallest: Content) -> None:
    assert learning_charts(smallest) == []
    assert ranking_charts(smallest) == []
    assert reliability_charts(smallest) == []
    assert risk_chart(smallest) is None
    assert answered_rows(None) == []


def test_a_model_without_a_temperature_has_no_before_and_after(
    content: Callable[..., Content],
) -> None:
    before, after = reliability_charts(content())
    assert "Before calibration" in before
    assert "After calibration" in after
    (only,) = reliability_charts(replace(content(), reliability={"before": ()}))
    assert "calibration" not in only


def test_figures_of_ranking_are_no_percentages() -> None:
    shares = {key: is_share(key) for key in ("val_accuracy", "val_auroc", "val_loss", "lr")}
    assert shares == {"val_accuracy": True, "val_auroc": False, "val_loss": False, "lr": False}


def test_the_chosen_point_is_named(content: Callable[..., Content]) -> None:
    chart = risk_chart(content())
    assert chart
    assert "chosen: 90.0 % answered, 2.0 % wrong" in chart
    plain = risk_chart(replace(content(), abstain_at=None))
    assert plain
    assert "chosen" not in plain


def test_the_table_of_abstention_has_the_nearest_points_once() -> None:
    curve = Series("", (1.0, 0.89, 0.5, 0.1), (0.05, 0.04, 0.01, math.nan))
    assert answered_rows(curve) == [(1.0, 0.05), (0.89, 0.04), (0.5, 0.01)]
