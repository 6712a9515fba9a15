"""What a finished training leaves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import main
from finetune.training.checkpoints import load_checkpoint


def test_the_bundle_is_the_best_checkpoint(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    """Without a probe and an average there is nothing else that it could be."""
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    assert main([*words, "trainer.ema_decay=0"]) == 0
    run = tmp_path / "stripes" / "a"
    bundle = load_file(run / "model.safetensors")
    checkpoint = load_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"]
    assert len(bundle) > 50
    for name, value in bundle.items():
        assert torch.equal(value, checkpoint[f"classifier.{name}"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["chosen"] == "fine-tuned"
    assert list(metrics["candidates"]) == ["fine-tuned"]


def test_the_bundle_is_the_candidate_that_is_said_to_be_chosen(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    candidates = metrics["candidates"]
    assert set(candidates) == {"fine-tuned", "moving average"}
    ranks = {
        name: (values["val_accuracy"], -values["val_loss"]) for name, values in candidates.items()
    }
    assert metrics["chosen"] == max(ranks, key=lambda name: ranks[name])
    assert metrics["val"]["accuracy"] == pytest.approx(
        candidates[metrics["chosen"]]["val_accuracy"]
    )
    best = load_checkpoint(trained / "checkpoints" / "best.ckpt")["state_dict"]
    last = load_checkpoint(trained / "checkpoints" / "last.ckpt")
    heads = {
        "fine-tuned": best["classifier.head.linear.weight"],
        "moving average": last["callbacks"]["MovingAverage"]["weights"]["head.linear.weight"],
    }
    assert not torch.equal(*heads.values())
    bundle = load_file(trained / "model.safetensors")
    assert torch.equal(bundle["head.linear.weight"], heads[metrics["chosen"]])


def test_a_probe_that_is_all_is_the_bundle(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    assert main([*words, "freeze=backbone"]) == 0
    run = tmp_path / "stripes" / "a"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["probe.ckpt"]
    bundle = load_file(run / "model.safetensors")
    probe = load_checkpoint(run / "checkpoints" / "probe.ckpt")["state_dict"]
    assert {f"classifier.{name}" for name in bundle} == set(probe)
    for name, value in bundle.items():
        assert torch.equal(value, probe[f"classifier.{name}"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["chosen"], metrics["best_epoch"]) == ("probe", 0)
    fitted = json.loads((run / "probe.json").read_text())
    assert fitted["is_converged"]
    assert metrics["val"]["accuracy"] == pytest.approx(fitted["val"]["accuracy"])


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
