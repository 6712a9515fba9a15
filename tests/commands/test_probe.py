"""The head that is fitted on features, before the first step or in place of all."""

import contextlib
import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import main
from finetune.exports.bundle import load_model
from finetune.training.checkpoints import load_checkpoint


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def classifier_state(path: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(path)["state_dict"]
    return {name.removeprefix("classifier."): value for name, value in state.items()}


@pytest.fixture(scope="module")
def words(trained: Path, stripes: Path, quick: tuple[str, ...]) -> list[str]:
    """Return a training from the weights of another, of which only the backbone counts."""
    weights = f"model.weights={trained / 'model.safetensors'}"
    return ["train", f"dataset.root={stripes}", *quick, weights, "trainer.epochs=1"]


@pytest.fixture(scope="module")
def probed(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:  # fmt: skip
    """Return a run that began with a probe, and what it printed."""
    runs = tmp_path_factory.mktemp("probed")
    return run_and_read([*words, f"runs={runs}", "name=a"], runs / "stripes" / "a")


@pytest.fixture(scope="module")
def alone(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run that was nothing but a probe, and what it printed."""
    runs = tmp_path_factory.mktemp("alone")
    return run_and_read([*words, f"runs={runs}", "name=a", "freeze=backbone"],
                        runs / "stripes" / "a")  # fmt: skip


def run_and_read(words: list[str], run: Path) -> tuple[Path, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(words) == 0
    return run, " ".join(output.getvalue().split())


def printed_accuracy(output: str) -> float:
    found = re.search(r"Probe: .*? accuracy ([0-9.]+) on val", output)
    assert found, output
    return float(found.group(1).rstrip("."))


def test_the_record_says_what_was_tried_and_what_it_gave(probed: tuple[Path, str]) -> None:
    run, output = probed
    record = json.loads((run / "probe.json").read_text())
    assert record["is_converged"] is True
    assert record["folds"] >= 2
    tried = [entry["strength"] for entry in record["curve"]]
    assert len(tried) > 1
    assert record["strength"] in tried
    assert all(entry["log_loss"] >= 0 for entry in record["curve"])
    assert record["val"].keys() == {"loss", "accuracy", "balanced_accuracy", "macro_f1"}
    assert f"{record['val']['accuracy']:.4f}" in output
    assert f"strength {record['strength']:g} of {len(tried)}" in output


def test_it_is_the_row_of_epoch_0(probed: tuple[Path, str]) -> None:
    run, _ = probed
    first, second = rows_of(run)
    assert (first["epoch"], second["epoch"]) == ("0", "1")
    assert first["train_loss"] == first["lr"] == ""
    record = json.loads((run / "probe.json").read_text())["val"]
    assert float(first["val_loss"]) == record["loss"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert float(first[f"val_{name}"]) == record[name]


def test_the_saved_head_gives_the_printed_accuracy_on_the_images(
    probed: tuple[Path, str], stripes: Path
) -> None:
    run, output = probed
    model = load_model(run)
    model.classifier.load_state_dict(classifier_state(run / "checkpoints" / "probe.ckpt"))
    with (run / "split.csv").open() as file:
        val = [row for row in csv.DictReader(file) if row["split"] == "val"]
    answers = model.predict([stripes / row["path"] for row in val])
    right = [
        answer.labels == (row["label"],) for answer, row in zip(answers, val, strict=True)
    ]  # fmt: skip
    assert sum(right) / len(right) == pytest.approx(printed_accuracy(output), abs=1e-4)
    loss = -sum(
        torch.tensor(answer.probabilities[row["label"]]).clamp(min=1e-12).log().item()
        for answer, row in zip(answers, val, strict=True)
    ) / len(val)
    recorded = json.loads((run / "probe.json").read_text())["val"]["loss"]
    assert loss == pytest.approx(recorded, rel=1e-3, abs=1e-5)


def test_the_backbone_of_the_probe_is_that_of_the_weights(
    probed: tuple[Path, str], trained: Path
) -> None:
    state = classifier_state(probed[0] / "checkpoints" / "probe.ckpt")
    weights = load_file(trained / "model.safetensors")
    backbone = [name for name in state if name.startswith("backbone.")]
    assert any("running_mean" in name for name in backbone)
    assert all(torch.equal(state[name], weights[name]) for name in backbone)
    # The head is not that of the weights.
    assert not torch.equal(state["head.linear.weight"], weights["head.linear.weight"])


def test_a_probe_alone_ends_without_a_step(alone: tuple[Path, str]) -> None:
    run, output = alone
    assert [row["epoch"] for row in rows_of(run)] == ["0"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["probe.ckpt"]
    assert "nothing else learns" in output
    assert "learning rate" not in output
    state = classifier_state(run / "checkpoints" / "probe.ckpt")
    model = load_file(run / "model.safetensors")
    assert model.keys() == state.keys()
    assert all(torch.equal(model[name], state[name]) for name in state)


def test_a_probe_alone_is_a_whole_result(alone: tuple[Path, str]) -> None:
    run, output = alone
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["chosen"] == "probe"
    assert list(metrics["candidates"]) == ["probe"]
    assert metrics["best_epoch"] == 0
    assert metrics["val"]["accuracy"] == pytest.approx(printed_accuracy(output), abs=1e-4)
    for name in ("model.ts", "curves.png", "confusion_matrix.png", "predictions_val.csv"):
        assert (run / name).is_file(), name


def test_a_probe_alone_has_nothing_to_resume(
    alone: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"resume={alone[0]}"]) == 2
    assert "has finished; there is nothing to go on with" in capsys.readouterr().err


def test_the_same_images_are_not_looked_at_twice(
    alone: tuple[Path, str], probed: tuple[Path, str]
) -> None:
    """Whichever of both ran second finds the features of all 80 images, and fits the same."""
    kept = [output.count("80 of them kept from before") for _, output in (alone, probed)]
    assert sum(kept) >= 1
    one, other = (
        classifier_state(run / "checkpoints" / "probe.ckpt") for run, _ in (alone, probed)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_random_weights_are_not_probed(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["recipe"]["freeze.policy"] == "none"
    assert "random weights" in record["decisions"]["freeze.policy"]
    assert not (trained / "probe.json").exists()
    assert not (trained / "checkpoints" / "probe.ckpt").exists()
    assert [row["epoch"] for row in rows_of(trained)] == ["1", "2", "3"]


def test_only_a_linear_head_is_probed(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "stripes" / "a"
    _, output = run_and_read([*words, "head=cosine", f"runs={tmp_path}", "name=a"], run)
    assert "no probe, since head=cosine is not linear" in output
    assert not (run / "probe.json").exists()
    assert [row["epoch"] for row in rows_of(run)] == ["1"]
