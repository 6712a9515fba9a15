"""Which weights a training ends with."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import finetune.commands.candidates
from finetune.cli import main
from finetune.commands.candidates import BETWEEN, FINE_TUNED, MOVING_AVERAGE, PROBE
from finetune.exports.bundle import load_model
from finetune.models.backbones import create_backbone
from finetune.training.averaging import average_states
from finetune.training.candidates import best_of
from finetune.training.checkpoints import load_checkpoint

ALL = [PROBE, FINE_TUNED, MOVING_AVERAGE, BETWEEN]


def train(words: list[str], runs: Path) -> tuple[Path, dict[str, Any], str]:
    """Return the run, its figures, and what was printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([*words, f"runs={runs}", "name=a"]) == 0
    run = runs / "stripes" / "a"
    return run, json.loads((run / "metrics.json").read_text()), " ".join(output.getvalue().split())


def state_of(run: Path, name: str) -> dict[str, torch.Tensor]:
    state = load_checkpoint(run / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return {
        key.removeprefix("classifier."): value
        for key, value in state.items()
        if key.startswith("classifier.")
    }


def is_state(run: Path, expected: dict[str, torch.Tensor]) -> bool:
    saved = load_file(run / "model.safetensors")
    assert saved.keys() == expected.keys()
    return all(torch.equal(saved[name], value) for name, value in expected.items())


@pytest.fixture(scope="module")
def words(
    stripes: Path, quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Return a training from random weights that pass for pretrained ones: a poor probe."""
    torch.manual_seed(3)
    weights = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(create_backbone("nano").state_dict(), weights)
    return ["train", f"dataset.root={stripes}", *quick, f"model.weights={weights}"]


@pytest.fixture(scope="module")
def tuned(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    settings = ["freeze.batchnorm=train", "dataset.monitor=loss", "trainer.ema_decay=0.5"]
    return train([*words, *settings, "trainer.epochs=4"], tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def spoilt(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """Train at a rate that can only do harm."""
    words = [word for word in words if not word.startswith("optimizer.lr=")]
    settings = ["optimizer.lr=1.0", "dataset.monitor=loss", "trainer.epochs=1"]
    return train([*words, *settings], tmp_path_factory.mktemp("spoilt"))


def test_all_four_are_compared_and_the_best_is_taken(
    tuned: tuple[Path, dict[str, Any], str],
) -> None:
    _, metrics, output = tuned
    candidates = metrics["candidates"]
    assert list(candidates) == ALL
    best = best_of(candidates, monitor="val_loss", mode="min")
    assert metrics["chosen"] == best
    assert best != PROBE  # of random features there is much to learn
    assert f"Best by loss on val: {best} (of " in output
    for name, row in candidates.items():
        assert f"{name} {row['val_loss']:.4f}" in output


def test_what_is_saved_is_what_was_measured(tuned: tuple[Path, dict[str, Any], str]) -> None:
    """The bundle's own figures, of all images again, are those by which it was chosen."""
    run, metrics, _ = tuned
    chosen = metrics["candidates"][metrics["chosen"]]
    assert metrics["val"]["log_loss"] == pytest.approx(chosen["val_loss"], abs=1e-4)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert metrics["val"][name] == pytest.approx(chosen[f"val_{name}"], abs=1e-6)
    states = {PROBE: state_of(run, "probe"), FINE_TUNED: state_of(run, "best")}
    for name, state in states.items():
        assert is_state(run, state) is (name == metrics["chosen"])


@pytest.mark.parametrize("name", ["tuned", "spoilt"])
def test_the_result_is_never_worse_than_the_probe(
    name: str, request: pytest.FixtureRequest
) -> None:
    _, metrics, _ = request.getfixturevalue(name)
    assert metrics["val"]["log_loss"] <= metrics["candidates"][PROBE]["val_loss"] + 1e-5


def test_a_training_that_does_harm_is_thrown_away(
    spoilt: tuple[Path, dict[str, Any], str],
) -> None:
    run, metrics, output = spoilt
    candidates = metrics["candidates"]
    assert candidates[FINE_TUNED]["val_loss"] > candidates[PROBE]["val_loss"]
    assert metrics["chosen"] == PROBE
    assert metrics["best_epoch"] == 0
    assert "Best by loss on val: probe" in output
    assert is_state(run, state_of(run, "probe"))


def test_the_figures_of_the_average_are_those_of_averaged_weights(
    spoilt: tuple[Path, dict[str, Any], str], stripes: Path
) -> None:
    """With frozen statistics, nothing is estimated anew: the weights can be averaged by hand."""
    run, metrics, _ = spoilt
    assert json.loads((run / "run.json").read_text())["recipe"]["freeze.batchnorm"] == "frozen"
    model = load_model(run)
    model.classifier.load_state_dict(average_states(state_of(run, "probe"), state_of(run, "best")))
    with (run / "split.csv").open() as file:
        val = [row for row in csv.DictReader(file) if row["split"] == "val"]
    answers = model.predict([stripes / row["path"] for row in val])
    right = [a.labels == (row["label"],) for a, row in zip(answers, val, strict=True)]
    found = metrics["candidates"][BETWEEN]["val_accuracy"]
    assert sum(right) / len(right) == pytest.approx(found, abs=1e-6)


def test_without_a_probe_or_an_average_the_best_epoch_is_all(
    stripes: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    words = ["train", f"dataset.root={stripes}", *quick, "trainer.ema_decay=0", "trainer.epochs=1"]
    run, metrics, output = train(words, tmp_path)
    assert list(metrics["candidates"]) == [FINE_TUNED]
    assert metrics["chosen"] == FINE_TUNED
    assert "Best by" not in output
    assert is_state(run, state_of(run, "best"))


def test_a_moving_average_has_statistics_of_its_own(trained: Path) -> None:
    """Where statistics follow the batches, those of the average are gathered anew."""
    metrics = json.loads((trained / "metrics.json").read_text())
    assert list(metrics["candidates"]) == [FINE_TUNED, MOVING_AVERAGE]
    if metrics["chosen"] != MOVING_AVERAGE:
        pytest.skip("the average was not the best here")
    average = load_checkpoint(trained / "checkpoints" / "last.ckpt")["callbacks"]["MovingAverage"]
    saved = load_file(trained / "model.safetensors")
    assert saved.keys() == average["weights"].keys()
    for name, value in average["weights"].items():
        is_gathered = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(saved[name], value) is not is_gathered, name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["freeze=gradual"], {"layer4"}),
        (["freeze=none", "freeze.stages=3"], {"layer3", "layer4"}),
        (["freeze=none", "freeze.batchnorm=frozen"], set()),
    ],
)
def test_only_statistics_that_training_moved_are_gathered_anew(
    settings: list[str],
    expected: set[str],
    stripes: Path,
    quick: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In two epochs of gradual unfreezing, the last stage alone has been open."""
    gathered: list[list[nn.Module]] = []
    classifiers: list[nn.Module] = []

    def recorded(network: nn.Module, norms: list[nn.Module], batches: object) -> None:
        del batches
        classifiers.append(network)
        gathered.append(norms)

    monkeypatch.setattr(finetune.commands.candidates, "reestimate_batchnorm", recorded)
    words = ["train", f"dataset.root={stripes}", *quick, "trainer.epochs=2", "augmentation=none"]
    train([*words, *settings], tmp_path)
    found = {
        name.split(".")[1]
        for network, norms in zip(classifiers, gathered, strict=True)
        for name, module in network.named_modules()
        if any(module is norm for norm in norms)
    }
    assert found == expected
