"""What the recipe chooses is settled, kept with the run, and stands when the run goes on."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import finetune.commands.recipe
from finetune.cli import _compose, _prepare, _tokens, main
from finetune.commands.recipe import (
    OPEN,
    fill_in,
    is_pretrained,
    needs_steps,
    settle_recipe,
    starts_from_probe,
    transforms_of,
)
from finetune.config import TrainConfig
from finetune.data.discover import ImageFolder, Sample
from finetune.training.callbacks import EpochTable
from finetune.training.checkpoints import load_checkpoint
from finetune.training.hardware import Hardware
from finetune.training.recipe import Choice, Facts
from finetune.usage import CONF
from finetune.validation import validate

CPU = Hardware("cpu", 1, 1, "auto", "32-true", {})
TYPED = {
    "model.image_size_px": 48,
    "trainer.batch_size": 10,
    "trainer.epochs": 7,
    "trainer.ema_decay": 0.25,
    "trainer.early_stopping_patience": 4,
    "optimizer.lr": 0.0123,
    "optimizer.backbone_lr_factor": 0.5,
    "optimizer.layer_decay": 0.9,
    "optimizer.weight_decay": 0.01,
    "scheduler.warmup_epochs": 2.5,
    "freeze.batchnorm": "train",
    "augmentation.mixup_alpha": 0.3,
}


def config(*words: str) -> TrainConfig:
    tokens, _ = _tokens("train", ["dataset.root=x", *words])
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    return validate(TrainConfig, values)


def folder(num_images: int = 200) -> ImageFolder:
    samples = [Sample(f"{i}.png", ("ab"[i % 2],), "train") for i in range(num_images)]
    samples += [Sample(f"val/{i}.png", ("ab"[i % 2],), "val") for i in range(1_000)]
    return ImageFolder(Path("x"), ("a", "b"), tuple(samples), ())


def value_of(settled: TrainConfig, key: str) -> Any:
    group, _, name = key.partition(".")
    return getattr(getattr(settled, group), name)


def test_nothing_is_left_open_and_the_config_says_what_the_choices_say() -> None:
    settled, choices = settle_recipe(config("optimizer.lr=find"), folder(), None, CPU)
    assert set(choices) == {*TYPED, "augmentation.transforms"}
    for key, choice in choices.items():
        value = value_of(settled, key)
        assert value not in OPEN
        if key == "augmentation.transforms":
            assert value == transforms_of(str(choice.value))
        else:
            assert value == choice.value, key


@pytest.mark.parametrize("key", TYPED)
def test_what_was_typed_stands_and_the_rest_is_chosen(key: str) -> None:
    settled, choices = settle_recipe(config(f"{key}={TYPED[key]}"), folder(), None, CPU)
    assert key not in choices
    assert value_of(settled, key) == TYPED[key]
    assert set(choices) == {*TYPED, "augmentation.transforms"} - {key}


def test_everything_typed_leaves_nothing_to_choose() -> None:
    words = [f"{key}={value}" for key, value in TYPED.items()]
    typed = config(*words, "augmentation=light")
    settled, choices = settle_recipe(typed, folder(), None, CPU)
    assert choices == {}
    assert settled == typed


def test_a_run_that_goes_on_chooses_nothing_anew() -> None:
    begun = {**TYPED, "freeze.policy": "backbone", "augmentation.transforms": "strong"}
    # By other images, all of it would be chosen otherwise.
    settled, choices = settle_recipe(config(), folder(5_000), None, CPU, decided=begun)
    assert {key: choice.value for key, choice in choices.items()} == begun
    for key, value in begun.items():
        expected = transforms_of("strong") if key == "augmentation.transforms" else value
        assert value_of(settled, key) == expected, key


def test_a_schedule_without_a_warm_up_is_given_none() -> None:
    _, choices = settle_recipe(config("scheduler=onecycle"), folder(), None, CPU)
    assert "scheduler.warmup_epochs" not in choices
    assert "trainer.epochs" in choices


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        (["model=resnet18"], "probe_then_finetune"),
        (["model=nano"], "probe_then_finetune"),
        (["model=nano", "model.pretrained=false"], "none"),
        (["model=resnet18", "model.pretrained=false"], "none"),
        (["model=nano", "model.weights=w.safetensors"], "probe_then_finetune"),
        (["model=nano", "model.pretrained=false", "freeze=gradual"], "gradual"),
        (["model=nano", "model.pretrained=false", "freeze=backbone"], "backbone"),
    ],
)
def test_features_of_random_weights_are_not_probed_unasked(words: list[str], policy: str) -> None:
    settled, choices = settle_recipe(config(*words), folder(), None, CPU)
    assert settled.freeze.policy == policy
    assert ("freeze.policy" in choices) is (policy == "none")


@pytest.mark.parametrize(
    ("words", "probed", "steps", "pretrained"),
    [
        ([], True, True, True),
        (["freeze=backbone"], True, False, True),
        (["freeze=backbone", "head=mlp"], False, True, True),
        (["head=cosine"], False, True, True),
        (["freeze=none"], False, True, True),
        (["freeze=gradual"], False, True, True),
        (["freeze=batchnorm_only"], False, True, True),
        (["model=nano"], True, True, True),
        (["model=nano", "model.pretrained=false"], True, True, False),
    ],
)
def test_what_a_policy_and_a_head_need(
    words: list[str], probed: bool, steps: bool, pretrained: bool
) -> None:
    typed = config("model=resnet18", *words)
    assert starts_from_probe(typed) is probed
    assert needs_steps(typed) is steps
    assert is_pretrained(typed) is pretrained


def test_every_option_of_augmentation_has_transforms() -> None:
    options = [p.stem for p in (CONF / "augmentation").glob("*.yaml") if p.stem[0] != "_"]
    assert len(options) > 3
    for option in set(options) - {"auto"}:
        assert all("name" in transform for transform in transforms_of(option)), option


def test_filling_in_changes_a_copy() -> None:
    typed = config()
    filled = fill_in(typed, {"trainer.epochs": 3, "augmentation.transforms": "light"})
    assert filled.trainer.epochs == 3
    assert filled.augmentation.transforms == transforms_of("light")
    assert typed.trainer.epochs == "auto"
    assert fill_in(typed, {}) == typed


@pytest.fixture(scope="module")
def interrupted(
    trained: Path, stripes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[dict[str, str]]]:
    """Return a run stopped after its first epoch by Ctrl-C, its record and its rows."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", f"dataset.root={stripes}", f"runs={runs}", "name=a", "trainer=cpu"]
    words += ["model=nano", f"model.weights={trained / 'model.safetensors'}"]
    words += ["dataset.workers=0", "trainer.epochs=2", "model.image_size_px=32"]

    def press(_: EpochTable, trainer: Any, module: Any) -> None:
        del module
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochTable, "on_train_epoch_start", press, raising=False)
        assert main(words) == 130
    run = runs / "stripes" / "a"
    return run, json.loads((run / "run.json").read_text()), rows_of(run)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_record_has_every_choice_and_its_reason(
    interrupted: tuple[Path, dict[str, Any], list[dict[str, str]]],
) -> None:
    _, record, _ = interrupted
    expected = {*TYPED, "augmentation.transforms"} - {"trainer.epochs", "model.image_size_px"}
    assert set(record["recipe"]) == expected
    for key, value in record["recipe"].items():
        assert record["decisions"][key].startswith(f"{value} ("), key


def test_a_resumed_run_keeps_what_was_chosen_and_the_row_of_the_probe(
    interrupted: tuple[Path, dict[str, Any], list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, record, rows = interrupted
    assert [row["epoch"] for row in rows] == ["0", "1"]
    probe = (run / "checkpoints" / "probe.ckpt").read_bytes()

    real = finetune.commands.recipe.choose_recipe

    def chooses_otherwise(facts: Facts) -> dict[str, Choice]:
        return {
            key: Choice("none" if key == "augmentation.transforms" else "another", "later")
            for key in real(facts)
        }

    monkeypatch.setattr("finetune.commands.recipe.choose_recipe", chooses_otherwise)
    assert main(["train", f"resume={run}"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "as the run began" in output
    assert "Probe: features" not in output
    after_it = json.loads((run / "run.json").read_text())
    assert len(after_it.pop("resumed")) == 1
    assert after_it == record
    assert (run / "checkpoints" / "probe.ckpt").read_bytes() == probe
    after = rows_of(run)
    assert [row["epoch"] for row in after] == ["0", "1", "2"]
    assert after[:2] == rows
    candidates = json.loads((run / "metrics.json").read_text())["candidates"]
    assert candidates["probe"]["val_loss"] == float(rows[0]["val_loss"])
    assert "average of probe and fine-tuned" in candidates
    size = record["recipe"]["trainer.batch_size"]
    last = load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2 * (64 // size)
