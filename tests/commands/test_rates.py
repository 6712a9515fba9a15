"""Learning rates that are found by trying."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import finetune.commands.rates
import finetune.commands.train
from finetune.cli import main
from finetune.commands.rates import RUNGS, SEARCHED_FACTORS
from finetune.commands.setup import Setup
from finetune.data.datamodule import ImageDataModule
from finetune.training.checkpoints import load_checkpoint

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def words(trained: Path, stripes: Path, quick: tuple[str, ...]) -> list[str]:
    settings = [word for word in quick if not word.startswith(("optimizer.lr=", "trainer.epochs"))]
    weights = f"model.weights={trained / 'model.safetensors'}"
    return ["train", f"dataset.root={stripes}", *settings, weights, "trainer.epochs=2"]


def train(words: list[str], runs: Path) -> tuple[Path, dict[str, Any], str]:
    """Return the run, its record, and what was printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([*words, f"runs={runs}", "name=a"]) == 0
    run = runs / "stripes" / "a"
    return run, json.loads((run / "run.json").read_text()), " ".join(output.getvalue().split())


@pytest.fixture(scope="module")
def found(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str, list[State]]:
    """Train with a rate that is found; the last part is the state before and after the search."""
    states: list[State] = []
    real = finetune.commands.rates.find_choice

    def recorded(setup: Setup, steps: ImageDataModule) -> Any:
        states.append(copy_of(setup))
        choice = real(setup, steps)
        states.append(copy_of(setup))
        return choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.commands.train, "find_choice", recorded)
        result = train([*words, "optimizer.lr=find"], tmp_path_factory.mktemp("found"))
    return *result, states


@pytest.fixture(scope="module")
def searched(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str, list[State]]:
    """Train after a search; the last part is the state at the start of each trial, and after."""
    states: list[State] = []
    real_trial, real = finetune.commands.rates._train, finetune.commands.rates.search_choice

    def trial(setup: Setup, steps: ImageDataModule) -> Sequence[Mapping[str, float]]:
        states.append(copy_of(setup))
        return real_trial(setup, steps)

    def search(setup: Setup, steps: ImageDataModule) -> Any:
        choice = real(setup, steps)
        states.append(copy_of(setup))
        return choice

    settings = ["recipe=search", "optimizer.lr=1e-3", "dataset.monitor=loss"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.commands.rates, "_train", trial)
        patch.setattr(finetune.commands.train, "search_choice", search)
        result = train([*words, *settings], tmp_path_factory.mktemp("searched"))
    return *result, states


def copy_of(setup: Setup) -> State:
    return {k: v.detach().cpu().clone() for k, v in setup.classifier.state_dict().items()}


def are_equal(one: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def probe_state(run: Path) -> State:
    state = load_checkpoint(run / "checkpoints" / "probe.ckpt")["state_dict"]
    return {name.removeprefix("classifier."): value for name, value in state.items()}


def first_rate(run: Path) -> float:
    """Read the rate that the schedule of the training begins from."""
    optimizer = load_checkpoint(run / "checkpoints" / "last.ckpt")["optimizer_states"][0]
    return max(float(group["initial_lr"]) for group in optimizer["param_groups"])


def test_the_range_test_is_drawn_and_the_training_goes_on_with_its_rate(
    found: tuple[Path, dict[str, Any], str, list[State]],
) -> None:
    run, record, output, _ = found
    with PIL.Image.open(run / "learning_rate.png") as image:
        image.verify()
    rate = record["recipe"]["optimizer.lr"]
    assert f"Learning rate {rate:g}: " in output
    assert record["decisions"]["optimizer.lr"].startswith(f"{rate} (")
    assert first_rate(run) == pytest.approx(rate)
    assert (run / "model.ts").is_file()
    assert not (run / "search.json").exists()


def test_the_range_test_leaves_the_weights_as_they_were(
    found: tuple[Path, dict[str, Any], str, list[State]],
) -> None:
    run, _, _, (before, after) = found
    assert are_equal(before, after)
    assert are_equal(before, probe_state(run))


def test_three_rates_are_tried_and_the_better_two_again(
    searched: tuple[Path, dict[str, Any], str, list[State]],
) -> None:
    run, _, output, _ = searched
    record = json.loads((run / "search.json").read_text())
    rates = [float(f"{1e-3 * factor:.2g}") for factor in SEARCHED_FACTORS]
    first, second = record["trials"][:3], record["trials"][3:]
    assert [trial["lr"] for trial in first] == rates
    assert len(second) == RUNGS[1][0] == 2
    ranked = sorted(first, key=lambda trial: trial["val_loss"])
    assert [trial["lr"] for trial in second] == [trial["lr"] for trial in ranked[:2]]
    best = min(second, key=lambda trial: trial["val_loss"])
    assert record["chosen"] == best["lr"]
    assert output.count("Search: lr ") == 5
    assert all(trial["epochs"] >= 1 for trial in record["trials"])


def test_the_training_goes_on_with_the_best_of_the_search(
    searched: tuple[Path, dict[str, Any], str, list[State]],
) -> None:
    run, record, _, _ = searched
    chosen = json.loads((run / "search.json").read_text())["chosen"]
    assert record["recipe"]["optimizer.lr"] == chosen
    assert "the best of" in record["decisions"]["optimizer.lr"]
    assert first_rate(run) == pytest.approx(chosen)
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 1  # both epochs


def test_every_trial_and_the_training_start_from_the_probe(
    searched: tuple[Path, dict[str, Any], str, list[State]],
) -> None:
    run, _, _, states = searched
    assert len(states) == 5 + 1
    probe = probe_state(run)
    assert all(are_equal(probe, state) for state in states)


def test_a_search_leaves_no_checkpoints_or_rows_of_its_own(
    searched: tuple[Path, dict[str, Any], str, list[State]],
) -> None:
    run, _, _, _ = searched
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"probe.ckpt", "best.ckpt", "last.ckpt"}
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 3  # epochs 0 to 2


@pytest.mark.parametrize("word", ["optimizer.lr=find", "recipe=search"])
def test_several_processes_do_not_look_for_a_rate(
    word: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    settings = [other for other in words if other != "trainer=cpu"]
    assert main([*settings, *several, word, f"runs={tmp_path}"]) == 2
    message = capsys.readouterr().err
    key, _, value = word.partition("=")
    assert f"{key}: got {value}" in message
    assert "trainer.devices=1" in message
    assert not list(tmp_path.iterdir())
