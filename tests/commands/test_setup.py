"""What can be refused is refused before anything is loaded; the rest is handled by a rule."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import finetune.commands.components
import finetune.commands.train
from finetune.cli import main
from finetune.commands.setup import Setup
from finetune.training.recipe import Choice


@pytest.fixture(scope="module")
def words(trained: Path, stripes: Path, quick: tuple[str, ...]) -> list[str]:
    weights = f"model.weights={trained / 'model.safetensors'}"
    return ["train", f"dataset.root={stripes}", *quick, weights]


def with_words(words: list[str], *others: str) -> list[str]:
    """Put words in place of those with the same key."""
    keys = {word.partition("=")[0] for word in others}
    return [word for word in words if word.partition("=")[0] not in keys] + list(others)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (["freeze.stages=5"], ["freeze.stages: got 5", "5 stages", "at most 4", "freeze=backbone"]),
        (["freeze=none", "freeze.stages=9"], ["freeze.stages: got 9", "nothing of it would learn"]),
        (["trainer.batch_size=1", "freeze.batchnorm=train"],
         ["trainer.batch_size: got 1", "BatchNorm", "at least two", "freeze.batchnorm=frozen"]),
        (["trainer.batch_size=65"], ["got 65", "64 images to train on", "at most 64"]),
        (["optimizer.lr=0"], ["optimizer.lr: got 0", "a number > 0"]),
        (["freeze=batchnorm_only", "model=nano", "model.backbone=vit_tiny_patch16_224",
          "model.weights=null", "model.image_size_px=224"], ["no BatchNorm"]),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "optimizer.lr=find"],
         ["optimizer.lr: got find", "trainer.devices=1"]),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "recipe=search"],
         ["recipe: got search", "optimizer.lr=RATE"]),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3"],
         ["multiple of the 3 processes", "such as 18"]),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.batch_size=2",
          "freeze.batchnorm=train"], ["one image for each process", "4"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_message_and_leaves_no_run(
    others: list[str],
    expected: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(with_words(words, *others, f"runs={tmp_path}")) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert all(part in message for part in expected), message
    assert "Traceback" not in message
    assert not list(tmp_path.rglob("run.json"))


def test_a_batch_of_one_is_allowed_where_statistics_are_frozen(
    words: list[str], tmp_path: Path
) -> None:
    """The recipe freezes them by itself where a batch is as small as that."""
    settings = ["trainer.batch_size=1", "trainer.epochs=1", "optimizer.lr=1e-4", "freeze.stages=4"]
    assert main(with_words(words, *settings, f"runs={tmp_path}", "name=a")) == 0
    record = json.loads((tmp_path / "stripes" / "a" / "run.json").read_text())
    assert record["recipe"]["freeze.batchnorm"] == "frozen"


def test_batches_of_one_class_are_mixed_like_any_other(words: list[str], tmp_path: Path) -> None:
    """Of two images a batch, every second one has a single class; mixup or cutmix by chance."""
    settings = ["trainer.batch_size=2", "trainer.epochs=1", "freeze=none"]
    settings += ["augmentation.mixup_alpha=1", "augmentation.cutmix_alpha=1"]
    assert main(with_words(words, *settings, f"runs={tmp_path}", "name=a")) == 0
    rows = (tmp_path / "stripes" / "a" / "metrics.csv").read_text().splitlines()
    assert float(rows[1].split(",")[1]) > 0


def take_setup(words: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    taken: list[Setup] = []

    def take(setup: Setup) -> None:
        taken.append(setup)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune.commands.train, "print_plan", take)
    assert main([*words, f"runs={runs}", "name=a"]) == 130
    return taken[0]


def test_further_choices_change_what_learns_and_keep_the_network(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = take_setup(words, tmp_path, monkeypatch)
    suffix = nn.Identity()
    setup.module.start_at(suffix)
    before = {name: value.clone() for name, value in setup.classifier.state_dict().items()}
    changed = setup.with_choices(
        {"freeze.policy": Choice("backbone", "no time"), "optimizer.lr": Choice(0.5, "found")}
    )
    assert changed.classifier is setup.classifier
    assert changed.module is not setup.module
    assert changed.module.suffix == (suffix,)
    assert list(changed.module.parts()) == ["head"]
    assert not any(p.requires_grad for p in changed.classifier.backbone.parameters())
    assert (changed.config.freeze.policy, changed.config.optimizer.lr) == ("backbone", 0.5)
    assert changed.choices["optimizer.lr"].reason == "found"
    assert changed.choices.items() >= setup.choices.items()
    # The first one is as it was.
    assert setup.config.freeze.policy == "probe_then_finetune"
    assert "freeze.policy" not in setup.choices
    after = changed.classifier.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
