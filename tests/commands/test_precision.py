"""The number formats that a CPU can train in; those of a GPU are in tests/gpu."""

import csv
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.training.checkpoints import load_checkpoint


def test_a_cpu_trains_in_both_of_its_number_formats_and_keeps_float32(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    losses = {}
    for precision in ("32", "bf16-mixed"):
        words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", f"name={precision}"]
        words += [*quick, f"trainer.precision={precision}", "trainer.ema_decay=0"]
        assert main(words) == 0
        run = tmp_path / "stripes" / precision
        with (run / "metrics.csv").open() as file:
            losses[precision] = [float(row["train_loss"]) for row in csv.DictReader(file)]
        assert losses[precision][-1] < 0.8 * losses[precision][0]
        checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")
        kept = [value for value in checkpoint["state_dict"].values() if value.is_floating_point()]
        moments = [
            value
            for state in checkpoint["optimizer_states"][0]["state"].values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        assert kept
        assert moments
        assert {value.dtype for value in [*kept, *moments]} == {torch.float32}
    # Were they equal, the second would not have computed in bfloat16.
    assert losses["bf16-mixed"][0] != losses["32"][0]
    assert losses["bf16-mixed"][0] == pytest.approx(losses["32"][0], rel=0.05)
