"""Frozen stages that are computed once give the training that they would give in every step."""

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import finetune.commands.train
from finetune.cli import _compose, _prepare, _tokens, main
from finetune.commands.prefix import frozen_stages, sees_the_same, skip_frozen_prefix
from finetune.commands.setup import Setup
from finetune.config import TrainConfig
from finetune.data.datamodule import ImageDataModule
from finetune.training.activations import Activations
from finetune.training.checkpoints import load_checkpoint
from finetune.validation import validate

FROZEN = ("freeze.stages=3", "augmentation=none")


def config_of(*words: str) -> TrainConfig:
    tokens, _ = _tokens("train", ["dataset.root=x", "augmentation.mixup_alpha=0", *words])
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    return validate(TrainConfig, values)


def train(words: list[str], runs: Path) -> tuple[Path, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([*words, f"runs={runs}", "name=a"]) == 0
    return runs / "stripes" / "a", " ".join(output.getvalue().split())


@pytest.fixture(scope="module")
def words(trained: Path, stripes: Path, quick: tuple[str, ...]) -> list[str]:
    """Return a training whose statistics follow the batches where they may."""
    settings = [word for word in quick if not word.startswith("augmentation")]
    settings += [f"model.weights={trained / 'model.safetensors'}", "trainer.epochs=2"]
    return ["train", f"dataset.root={stripes}", *settings, "freeze.batchnorm=train"]


@pytest.fixture(scope="module")
def cached(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, object]:
    """Return a run over activations, what it printed, and what the steps were given."""
    given: list[ImageDataModule] = []

    def recorded(setup: Setup) -> ImageDataModule:
        given.append(skip_frozen_prefix(setup))
        return given[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.commands.train, "skip_frozen_prefix", recorded)
        run, output = train([*words, *FROZEN], tmp_path_factory.mktemp("cached"))
    return run, output, given[0].train


def last_state(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(run / "checkpoints" / "last.ckpt")[
        "state_dict"
    ]
    return state


def test_the_steps_are_given_activations(cached: tuple[Path, str, object]) -> None:
    _, output, given = cached
    assert isinstance(given, Activations)
    assert "Frozen stages: computed once for 80 images" in output
    assert "MB on disk" in output


def test_the_weights_are_those_of_a_training_without_the_cache(
    cached: tuple[Path, str, object],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finetune.commands.train, "skip_frozen_prefix", lambda setup: setup.data)
    run, output = train([*words, *FROZEN], tmp_path)
    assert "computed once for" not in output.replace("features computed once", "")
    one, other = last_state(cached[0]), last_state(run)
    start = load_checkpoint(run / "checkpoints" / "probe.ckpt")["state_dict"]
    assert one.keys() == other.keys()
    moved = set()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-5)
        if not torch.equal(value, start[name]):
            moved.add(name.split(".")[2])
    assert moved == {"layer3", "layer4", "linear"}
    first, second = (
        json.loads((path / "metrics.json").read_text())["candidates"] for path in (cached[0], run)
    )
    assert first.keys() == second.keys()
    for name, row in first.items():
        assert row == pytest.approx(second[name], abs=1e-4), name


def test_frozen_stages_and_statistics_do_not_move_at_all(
    cached: tuple[Path, str, object],
) -> None:
    run = cached[0]
    start, end = load_checkpoint(run / "checkpoints" / "probe.ckpt")["state_dict"], last_state(run)
    frozen = [
        name
        for name in start
        if name.startswith("classifier.backbone.")
        and not name.startswith(("classifier.backbone.layer3", "classifier.backbone.layer4"))
    ]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(start[name], end[name]) for name in frozen)
    open_statistics = [name for name in start if "layer4" in name and "running_mean" in name]
    assert open_statistics
    assert not any(torch.equal(start[name], end[name]) for name in open_statistics)


def test_the_bundle_takes_images_again(
    cached: tuple[Path, str, object], stripes: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    assert main(["predict", f"run={cached[0]}", f"input={stripes}", f"output={table}"]) == 0
    assert len(table.read_text().splitlines()) == 81


def test_what_does_not_fit_on_the_disk_runs_in_every_step(words: list[str], tmp_path: Path) -> None:
    words = ["trainer.epochs=1" if word == "trainer.epochs=2" else word for word in words]
    small = ["dataset.cache_gb=0.0001", "dataset.cache=none"]
    run, output = train([*words, *FROZEN, *small], tmp_path)
    assert "The frozen stages run in every step" in output
    assert "dataset.cache_gb=0.0001" in output
    assert (run / "model.ts").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["augmentation=none"], True),
        (["augmentation=light"], False),
        (["augmentation=none", "augmentation.mixup_alpha=0.2"], False),
        (["augmentation=none", "augmentation.cutmix_alpha=1"], False),
        (["augmentation=none", "augmentation.random_erasing=0.1"], False),
    ],
)
def test_whether_every_epoch_shows_the_same(words: list[str], expected: bool) -> None:
    assert sees_the_same(config_of(*words)) is expected


@pytest.mark.parametrize(
    ("policy", "stages", "expected"),
    [("none", 0, 0), ("none", 2, 2), ("backbone", 0, 5), ("gradual", 1, 1), ("gradual", 0, 0),
     ("batchnorm_only", 3, 3)],
)  # fmt: skip
def test_stages_that_never_learn(policy: str, stages: int, expected: int) -> None:
    freezing = SimpleNamespace(policy=policy, stages=stages)
    module = cast(Any, SimpleNamespace(freezing=freezing, stages=["stage"] * 5))
    assert frozen_stages(module) == expected
