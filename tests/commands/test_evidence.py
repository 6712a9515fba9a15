"""What is found out about a trained model, and what becomes part of it."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.commands.evidence import calibrate_bundle, measure_answers
from finetune.commands.measure import Answers
from finetune.config.evidence import EvidenceConfig
from finetune.data.discover import Sample
from finetune.exports.bundle import Model, load_model

CONFIG = EvidenceConfig(
    calibrate=True,
    coverage=0.9,
    max_error="auto",
    min_sensitivity=0.95,
    min_specificity=0.95,
    resamples=100,
    pictures=0,
    report=False,
    gain=False,
)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def answers_of(count: int, *, temperature: float, group_of: int = 1) -> Answers:
    """Make answers whose probabilities hold once the logits are divided by the temperature."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(count, 2, generator=generator) * 1.5
    targets = torch.multinomial(true.softmax(1), 1, generator=generator).squeeze(1)
    names = ("lying", "standing")
    samples = tuple(
        Sample(f"{i}.png", (names[target],), "val", f"g{i // group_of}" if group_of > 1 else None)
        for i, target in enumerate(targets.tolist())
    )
    return Answers(Path(), samples, targets, true * temperature, torch.zeros(count, 3), {})


def test_what_is_found_becomes_part_of_the_model(folder: Path) -> None:
    answers = answers_of(1200, temperature=2.5)
    model, found = calibrate_bundle(folder, load_model(folder), answers, CONFIG, seed=0)
    assert found.calibration is not None
    assert found.sets is not None
    assert found.abstention is not None
    assert found.calibration.temperature == pytest.approx(2.5, rel=0.15)
    again = load_model(folder).description
    for description in (model.description, again):
        assert description.temperature == found.calibration.temperature
        assert description.sets is not None
        assert description.sets.limit == found.sets.limit
        assert description.abstain_below == found.abstention.threshold
    measured = measure_answers(model, answers, CONFIG, seed=0)
    assert measured.sets is not None
    assert measured.sets.coverage >= 0.9
    assert measured.answered is not None
    assert measured.answered.error == pytest.approx(found.abstention.error)
    assert json.loads(json.dumps(measured.to_dict(), allow_nan=False))["n"] == 1200


def test_what_is_not_asked_is_not_done(folder: Path) -> None:
    nothing = CONFIG.model_copy(
        update={"calibrate": False, "coverage": None, "max_error": None, "resamples": 0}
    )
    answers = answers_of(200, temperature=2.5)
    model, found = calibrate_bundle(folder, load_model(folder), answers, nothing, seed=0)
    assert (found.calibration, found.sets, found.abstention) == (None, None, None)
    assert model.description.temperature == 1
    measured = measure_answers(model, answers, nothing, seed=0)
    assert (measured.intervals, measured.sets, measured.answered) == (None, None, None)


def test_groups_make_intervals_wider(folder: Path) -> None:
    model = load_model(folder)
    alone = measure_answers(model, answers_of(300, temperature=1), CONFIG, seed=0)
    grouped = measure_answers(model, answers_of(300, temperature=1, group_of=30), CONFIG, seed=0)
    assert alone.intervals is not None
    assert grouped.intervals is not None
    assert (alone.intervals.units, grouped.intervals.units) == (300, 10)


def test_thresholds_of_validation_are_kept_elsewhere(folder: Path) -> None:
    model = load_model(folder)
    here = measure_answers(model, answers_of(300, temperature=1), CONFIG, seed=0)
    points = [{"rule": p.rule, "threshold": p.threshold} for p in here.operating_points]
    other = answers_of(500, temperature=3)
    there = measure_answers(model, other, CONFIG, seed=0, known_points=points)
    assert [p.threshold for p in there.operating_points] == [p["threshold"] for p in points]
    assert sum(getattr(there.operating_points[0], key) for key in ("tp", "fp", "fn", "tn")) == 500


def test_a_training_writes_all_of_it(trained: Path) -> None:
    figures = json.loads((trained / "metrics.json").read_text())
    description = json.loads((trained / "model.json").read_text())
    calibration = figures["calibration"]["calibration"]
    assert description["temperature"] == calibration["temperature"]
    assert figures["seconds"] > 0
    for split in ("val", "test"):
        overall = figures[split]["intervals"]["overall"]
        assert {"accuracy", "auroc", "log_loss", "expected_calibration_error"} <= set(overall)
        for key, ends in overall.items():
            if ends is not None:
                assert ends["low"] <= figures[split][key] <= ends["high"]
        assert description["metrics"][split]["intervals"] == figures[split]["intervals"]
        rules = [point["rule"] for point in figures[split]["operating_points"]]
        assert rules[0] == "default"
    thresholds = {
        split: [point["threshold"] for point in figures[split]["operating_points"]]
        for split in ("val", "test")
    }
    assert thresholds["val"] == thresholds["test"]


def test_tables_hold_calibrated_probabilities(
    folder: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the training wrote is what `predict` answers, at whatever temperature."""
    model = load_model(folder)
    with (folder / "predictions_val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 10
    for row, answer in zip(rows, model.predict([row["path"] for row in rows]), strict=True):
        assert answer.label == row["label"]
        assert float(row["p_lying"]) == pytest.approx(answer.probabilities["lying"], abs=1e-5)
    assert isinstance(model, Model)


def test_none_leaves_the_network_as_it_is(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    assert main([*words, "trainer.epochs=1"]) == 0
    run = tmp_path / "stripes" / "a"
    description = json.loads((run / "model.json").read_text())
    assert description["temperature"] == 1
    assert (description["sets"], description["abstain_below"]) == (None, None)
    assert not (run / "report.html").exists()
    assert not (run / "label_issues.csv").exists()
    assert json.loads((run / "metrics.json").read_text())["val"]["intervals"] is None
