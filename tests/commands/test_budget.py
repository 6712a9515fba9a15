"""A training with a time limit ends in time, whatever it was about to do."""

import contextlib
import csv
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

import finetune.commands.budget
from finetune.cli import _compose, _prepare, _tokens, main
from finetune.commands.budget import (
    FORWARD_SHARE,
    SHARE_FOR_STEPS,
    end_of_steps,
    keep_to_time,
    time_step,
)
from finetune.commands.recipe import fill_in
from finetune.config import TrainConfig
from finetune.training.checkpoints import load_checkpoint
from finetune.training.hardware import Hardware
from finetune.training.recipe import Choice
from finetune.validation import validate

TINY = "trainer.max_time_minutes=0.0001"
CPU = Hardware("cpu", 1, 1, "auto", "32-true", {})


def train(words: list[str], runs: Path) -> tuple[Path, dict[str, Any], str]:
    """Return the run, its record, and what was printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([*words, f"runs={runs}", "name=a"]) == 0
    run = runs / "stripes" / "a"
    return run, json.loads((run / "run.json").read_text()), " ".join(output.getvalue().split())


def epochs_of(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def words(stripes: Path, quick: tuple[str, ...]) -> list[str]:
    """Return a training whose epochs are left to the recipe."""
    settings = [word for word in quick if not word.startswith("trainer.epochs")]
    return ["train", f"dataset.root={stripes}", *settings]


def test_where_no_epoch_fits_the_probe_is_the_result(
    words: list[str], trained: Path, tmp_path: Path
) -> None:
    weights = f"model.weights={trained / 'model.safetensors'}"
    run, record, output = train([*words, weights, TINY], tmp_path)
    assert record["recipe"]["freeze.policy"] == "backbone"
    assert "without the limit" in record["decisions"]["freeze.policy"]
    assert "nothing else learns" in output
    assert epochs_of(run) == [0]
    assert json.loads((run / "metrics.json").read_text())["chosen"] == "probe"
    assert (run / "model.ts").is_file()


def test_without_a_probe_one_step_is_made_and_everything_written(
    words: list[str], tmp_path: Path
) -> None:
    run, record, output = train([*words, TINY], tmp_path)
    assert record["recipe"]["trainer.epochs"] == 1
    assert "0 s are left for training; without the limit" in record["decisions"]["trainer.epochs"]
    assert record["recipe"]["scheduler.warmup_epochs"] < 1
    assert "are left for training" in output
    assert epochs_of(run) == [1]
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 1
    assert json.loads((run / "metrics.json").read_text())["val"]["n"] == 16
    assert (run / "model.ts").is_file()


def test_epochs_that_were_typed_stand_until_time_is_over(words: list[str], tmp_path: Path) -> None:
    run, record, output = train([*words, "trainer.epochs=50", TINY], tmp_path)
    assert "trainer.epochs" not in record["recipe"]
    assert "in 50 epochs" in output
    assert "at most 0.0001 minutes in all" in output
    assert epochs_of(run) == [1]
    assert (run / "model.ts").is_file()


def plan(
    monkeypatch: pytest.MonkeyPatch,
    *words: str,
    seconds_a_step: float,
    deadline: float,
    world_size: int = 1,
) -> dict[str, Choice]:
    """Ask `keep_to_time` at second 0, for 12 epochs of 1,000 images with 500 to validate on."""
    monkeypatch.setattr(finetune.commands.budget, "time_step", lambda *_: seconds_a_step)
    monkeypatch.setattr(finetune.commands.budget, "time", SimpleNamespace(monotonic=lambda: 0.0))
    typed = ["dataset.root=x", "trainer.batch_size=100", *words]
    tokens, _ = _tokens("train", typed)
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    config = validate(TrainConfig, values)
    chosen = {"scheduler.warmup_epochs": Choice(1.0, "of twelve")}
    if config.trainer.epochs == "auto":
        chosen["trainer.epochs"] = Choice(12, "by the images")
    changed: dict[str, Choice] = {}
    setup = SimpleNamespace(
        config=fill_in(config, {key: choice.value for key, choice in chosen.items()}),
        data=SimpleNamespace(train=range(1_000), val=range(500)),
        hardware=SimpleNamespace(world_size=world_size),
        preprocess=SimpleNamespace(image_size_px=32),
        module=None,
        choices=chosen,
        with_choices=changed.update,
    )
    keep_to_time(cast(Any, setup), deadline)
    return changed


def test_with_time_enough_all_epochs_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = plan(monkeypatch, seconds_a_step=0.1, deadline=3_600)
    assert changed["trainer.epochs"].value == 12
    assert "all fit" in changed["trainer.epochs"].reason
    assert "freeze.policy" not in changed


def test_fewer_epochs_are_planned_where_there_is_less_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epoch_seconds = 1.0 * (10 + FORWARD_SHARE * 5)
    deadline = 3.5 * epoch_seconds / SHARE_FOR_STEPS
    changed = plan(monkeypatch, seconds_a_step=1.0, deadline=deadline)
    assert changed["trainer.epochs"].value == 3
    assert "without the limit 12" in changed["trainer.epochs"].reason
    assert 0 < float(changed["scheduler.warmup_epochs"].value) < 1
    assert "freeze.policy" not in changed


@pytest.mark.parametrize(
    ("words", "has_probe"),
    [([], True), (["freeze=none"], False), (["head=mlp"], False), (["freeze=gradual"], False)],
)
def test_only_what_has_a_probe_can_do_without_an_epoch(
    words: list[str], has_probe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = plan(monkeypatch, *words, seconds_a_step=10.0, deadline=-5.0)
    assert changed["trainer.epochs"].value == 1
    assert ("freeze.policy" in changed) is has_probe
    if has_probe:
        assert changed["freeze.policy"].value == "backbone"


@pytest.mark.parametrize(
    ("words", "world_size"), [(["trainer.epochs=5"], 1), (["freeze=backbone"], 1), ([], 2)]
)
def test_what_was_typed_has_no_steps_or_is_shared_is_not_planned_anew(
    words: list[str], world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(monkeypatch, *words, seconds_a_step=10.0, deadline=1.0, world_size=world_size)
    assert found == {}


class Doubled(nn.Module):
    """As much of a `FineTuning` as a step needs, with dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classifier = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)
        )
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.training
        self.sizes.append(len(images))
        logits: torch.Tensor = self.classifier(images.float() / 255)
        return logits


def test_timing_a_step_leaves_no_trace() -> None:
    module = Doubled()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator(), dtype=torch.uint8)
    seconds = time_step(cast(Any, module), images, CPU)
    assert 0 < seconds < 60
    assert len(module.sizes) >= 2
    assert set(module.sizes) == {4}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.rand(3), expected)


def test_steps_leave_time_for_what_follows_them() -> None:
    now = time.monotonic()
    assert now < end_of_steps(now + 100) < now + 90
    assert end_of_steps(now - 100) < now  # too late already
