"""The figures of a report, as rows and sentences."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.commands.evidence import Calibrated, Measured, measure_answers
from finetune.commands.measure import Answers
from finetune.commands.report_figures import (
    abstention,
    calibration_text,
    curves,
    metric_rows,
    operating_rows,
    reliability,
    sets_text,
)
from finetune.config.evidence import EvidenceConfig
from finetune.data.discover import Sample
from finetune.exports.bundle import Model, load_model
from finetune.exports.description import PredictionSets

CONFIG = EvidenceConfig(
    calibrate=True,
    coverage=0.95,
    max_error="auto",
    min_sensitivity=0.95,
    min_specificity=0.95,
    resamples=50,
    pictures=0,
    report=True,
    gain=False,
)


@pytest.fixture
def model(trained: Path) -> Model:
    """Return a model of two classes with sets that were made from 2,000 images."""
    model = load_model(trained)
    sets = PredictionSets(coverage=0.95, limit=0.6, penalty=0, free_ranks=1, images=2000)
    changes = {"sets": sets, "abstain_below": 0.7, "temperature": 2.0}
    model.description = model.description.model_copy(update=changes)
    return model


def measured(model: Model, *, wrong: int, count: int = 200) -> Measured:
    """Measure made-up answers, of which so many are sure and wrong."""
    targets = torch.arange(count) % 2
    logits = (torch.nn.functional.one_hot(targets, 2).float() * 2 - 1) * 4
    logits[:wrong] = -logits[:wrong]
    names = model.class_names
    samples = tuple(
        Sample(f"{i}.png", (names[target],), "val") for i, target in enumerate(targets.tolist())
    )
    answers = Answers(Path(), samples, targets, logits, torch.zeros(count, 3), {})
    return measure_answers(model, answers, CONFIG, seed=0)


def test_sets_that_miss_more_than_chance_explains_promise_nothing(model: Model) -> None:
    assert "enough to rely on" in sets_text(model, measured(model, wrong=8), None)
    text = sets_text(model, measured(model, wrong=60), None)
    assert "hold it in 70.0 %" in text
    assert "promise nothing" in text
    assert "rely on" not in text


def test_sets_from_few_images_are_not_relied_on(model: Model) -> None:
    sets = model.description.sets
    assert sets is not None
    few = sets.model_copy(update={"images": 100})
    model.description = model.description.model_copy(update={"sets": few})
    assert "too few to rely on" in sets_text(model, measured(model, wrong=8), None)
    model.description = model.description.model_copy(update={"sets": None})
    assert "No prediction sets" in sets_text(model, measured(model, wrong=8), None)


def test_rules_that_choose_one_threshold_share_a_row(model: Model) -> None:
    found = measured(model, wrong=0)
    points = [replace(found.operating_points[0], rule=rule) for rule in ("default", "youden")]
    (row,) = operating_rows(points)
    assert row.rule == "the usual 0.5; most sensitivity plus specificity (Youden)"
    assert (row.sensitivity.value, row.sensitivity.high) == (1.0, 1.0)
    assert row.sensitivity.low == pytest.approx(0.9638, abs=1e-3)  # 100 of 100, Clopper-Pearson


def test_each_metric_has_one_row_and_its_interval(model: Model) -> None:
    rows = {row.name: row for row in metric_rows({"val": measured(model, wrong=40)})}
    assert "macro recall" not in rows  # which is balanced accuracy
    assert "top-5 accuracy" not in rows
    accuracy = rows["accuracy"].values["val"]
    assert accuracy.value == 0.8
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low < 0.8 < accuracy.high


def test_the_temperature_is_shown_before_and_after(model: Model) -> None:
    found = measured(model, wrong=40)
    bins = reliability(model, found)
    assert list(bins) == ["before", "after"]
    assert bins["before"][0].confidence > bins["after"][0].confidence
    model.description = model.description.model_copy(update={"temperature": 1.0})
    assert list(reliability(model, measured(model, wrong=40))) == ["as it is"]
    assert "No temperature was fitted" in calibration_text(None, 1.0, "val")


def test_abstention_is_a_point_or_a_reason(model: Model) -> None:
    line, point, text = abstention(model, measured(model, wrong=40), None)
    assert point == (1.0, 0.2)
    assert line.x[-1] == 1.0
    assert "below 0.700" in text
    model.description = model.description.model_copy(update={"abstain_below": None})
    why = Calibrated(why_no_abstention="No answer is wrong.")
    assert abstention(model, measured(model, wrong=0), why)[1:] == (None, "No answer is wrong.")


def test_curves_of_two_classes_are_of_the_second(model: Model) -> None:
    roc, precision_recall = curves(model, measured(model, wrong=40))
    assert [line.name for line in (*roc, *precision_recall)] == [model.class_names[1]] * 2
