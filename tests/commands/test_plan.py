"""The plan says what the training then does."""

from pathlib import Path

import pytest

from finetune.cli import main


def plan_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the plan in one line; the training stops at its first step."""
    main(words)
    output = capsys.readouterr().out
    return " ".join(output[output.index("Plan") :].split())


@pytest.fixture
def words(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    def stops(*args: object, **kwargs: object) -> bool:
        return False

    monkeypatch.setattr("finetune.commands.train.fit", stops)
    return ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]


def test_data_steps_and_device(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of([*words, "trainer.accumulate_batches=2"], capsys)
    assert "2: lying (40), standing (40)" in plan
    assert "train 64, val 16, test 0; 32 px, crop" in plan
    # 64 images, 16 a batch, 2 batches a step, 3 epochs
    assert "6 in 3 epochs; 16 images a batch, 2 batches a step; adamw, cosine" in plan
    assert "random weights, so nothing is transferred" in plan
    assert "accuracy on val" in plan
    assert "one process, 0 workers" in plan


def test_what_is_frozen(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    everything = plan_of(words, capsys)
    assert "trainable, 0 frozen" in everything
    assert "learning rate stem" in everything
    head = plan_of([*words[:3], "name=b", *words[4:], "freeze=backbone"], capsys)
    assert "386 trainable" in head  # 192 features to 2 classes
    assert "fit the head on features computed once; nothing else learns" in head
    assert "learning rate" not in head
    assert "a frozen random backbone learns little" in head
    by_steps = plan_of([*words[:3], "name=d", *words[4:], "freeze=backbone", "head=mlp"], capsys)
    assert "train the head by steps" in by_steps
    assert "learning rate head 0.003 steps" in by_steps
    gradual = plan_of([*words[:3], "name=c", *words[4:], "freeze=gradual"], capsys)
    assert "386 trainable" in gradual
    assert "one stage more every 1 epoch(s)" in gradual


def test_rates_fall_towards_the_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "optimizer.lr=0.01",
        "optimizer.backbone_lr_factor=0.1",
        "optimizer.layer_decay=0.5",
    ]
    kept = [word for word in words if not word.startswith("optimizer.")]
    plan = plan_of([*kept, *settings], capsys)
    assert "layer3 0.0005, layer4 0.001, head 0.01" in plan
