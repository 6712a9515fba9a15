"""What a finished training leaves."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import main
from finetune.training.checkpoints import load_checkpoint


def test_the_bundle_is_the_best_checkpoint(trained: Path) -> None:
    bundle = load_file(trained / "model.safetensors")
    checkpoint = load_checkpoint(trained / "checkpoints" / "best.ckpt")["state_dict"]
    assert len(bundle) > 50
    for name, value in bundle.items():
        assert torch.equal(value, checkpoint[f"classifier.{name}"])


def test_the_last_words_say_figures_place_and_next_command(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    assert main([*words, "trainer.epochs=1"]) == 0
    output = capsys.readouterr().out
    assert "random weights, so nothing is transferred" in " ".join(output.split())
    ending = output[output.index("val: accuracy") :]
    assert "macro F1" in ending
    assert str(tmp_path / "stripes" / "a") in ending.replace("\n", "")
    assert ending.strip().endswith("input=IMAGES output=labels.csv")
