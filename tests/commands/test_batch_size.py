"""A batch size that is found by trying."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

import finetune.commands.batch_size
from finetune.cli import main
from finetune.commands.batch_size import LARGEST, STEPS_AN_EPOCH
from finetune.training.batch_finder import BatchSize
from finetune.training.callbacks import EpochTable
from finetune.training.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def words(stripes: Path, quick: tuple[str, ...]) -> list[str]:
    settings = [word for word in quick if not word.startswith(("trainer.batch_size", "trainer.ep"))]
    return ["train", f"dataset.root={stripes}", *settings, "trainer.batch_size=find"]


def press_at_1(_: EpochTable, trainer: Any, module: Any) -> None:
    """Press Ctrl-C as the second epoch begins."""
    del module
    if trainer.current_epoch == 1:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def found(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """Return a run that was interrupted after an epoch, what it printed, and the size it found."""
    runs, output = tmp_path_factory.mktemp("found"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(EpochTable, "on_train_epoch_start", press_at_1, raising=False)
        assert main([*words, "trainer.epochs=2", f"runs={runs}", "name=a"]) == 130
    text = " ".join(output.getvalue().split())
    size = re.search(r"Batch size: (\d+), the smallest within", text)
    assert size, text
    return runs / "stripes" / "a", text, int(size.group(1))


def test_what_was_tried_is_said_and_an_epoch_keeps_its_steps(found: tuple[Path, str, int]) -> None:
    run, output, size = found
    assert 1 <= size <= 64 // STEPS_AN_EPOCH  # 64 images to train on
    assert f"{size} images a batch" in output
    assert re.search(rf"\b{size}: \d+/s", output)
    steps = load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    assert steps == 64 // size


def test_what_was_found_is_kept_with_the_run(found: tuple[Path, str, int]) -> None:
    run, _, size = found
    record = json.loads((run / "run.json").read_text())
    assert record["recipe"]["trainer.batch_size"] == size
    assert record["decisions"]["trainer.batch_size"].startswith(f"{size} (")


def test_a_resumed_run_goes_on_with_the_size_that_was_found(
    found: tuple[Path, str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, size = found
    assert main(["train", f"resume={run}"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Batch size:" not in output  # it is not looked for again
    assert f"{size} images a batch" in output
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2 * (64 // size)


def test_several_processes_do_not_look_for_a_size(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for word in words if word != "trainer=cpu"]
    several = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    assert main([*settings, *several, f"runs={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "trainer.batch_size: got find" in message
    assert "trainer.devices=1" in message


def test_where_not_one_image_fits_it_says_what_to_change(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[int, int]] = []

    def nothing(_: object, *, start: int, largest: int) -> BatchSize:
        asked.append((start, largest))
        return BatchSize(None, None, (), "the first was too large")

    monkeypatch.setattr(finetune.commands.batch_size, "find_batch_size", nothing)
    assert main([*words, f"runs={tmp_path}"]) == 1
    message = capsys.readouterr().err
    assert "not a single image fits" in message
    assert "model.image_size_px" in message
    [(start, largest)] = asked
    assert 1 <= start <= largest <= min(LARGEST, 64 // STEPS_AN_EPOCH)
