"""Two nodes, started with torchrun on each, as docs/multi_gpu.md says; here both are this machine.

BatchNorm keeps its statistics: on CPUs, each process would have batch statistics of its own.
"""

import csv
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.cli import main
from finetune.models.backbones import create_backbone
from finetune.training.checkpoints import load_checkpoint

SECONDS = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_node(rank: int, port: int, words: list[str]) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return subprocess.Popen(
        [*torchrun, "-m", "finetune", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_two_nodes(words: list[str]) -> list[tuple[int, str]]:
    """Run both to the end; return status and output of each."""
    port = free_port()
    nodes = [run_node(rank, port, words) for rank in (0, 1)]
    try:
        outputs = [node.communicate(timeout=SECONDS)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [(node.returncode, output) for node, output in zip(nodes, outputs, strict=True)]


@pytest.fixture(scope="module")
def runs(
    stripes: Path, tmp_path_factory: pytest.TempPathFactory, quick: tuple[str, ...]
) -> tuple[Path, Path, list[str]]:
    """Train alone and on two nodes; return both folders of runs, and what the nodes printed."""
    folder = tmp_path_factory.mktemp("nodes")
    torch.manual_seed(0)
    # Random, but from a file: what is there to probe, the recipe does not ask.
    save_file(create_backbone("nano", image_size_px=32).state_dict(), folder / "nano.safetensors")
    words = ["train", f"dataset.root={stripes}", "name=a", *quick, "trainer.precision=32"]
    words += [f"model.weights={folder / 'nano.safetensors'}", "freeze=probe_then_finetune"]
    words += ["freeze.batchnorm=frozen", "trainer.ema_decay=0.5"]
    words += ["trainer.early_stopping_patience=null"]
    assert main([*words, f"runs={folder / 'one'}"]) == 0
    nodes = [word for word in words if word != "trainer=cpu"]
    nodes += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    ended = run_two_nodes([*nodes, f"runs={folder / 'two'}"])
    assert [status for status, _ in ended] == [0, 0], "\n".join(output for _, output in ended)
    return folder / "one", folder / "two", [output for _, output in ended]


def test_the_first_node_alone_writes_and_speaks(runs: tuple[Path, Path, list[str]]) -> None:
    one, two, outputs = runs

    def written(root: Path) -> list[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    assert written(two) == written(one)
    assert "stripes/a/model.safetensors" in written(two)
    assert "stripes/a/checkpoints/last.ckpt" in written(two)
    assert "ddp, 2 processes" in re.sub(r"\s+", " ", outputs[0])
    assert "Plan" not in outputs[1]
    assert "epoch" not in outputs[1]


def test_each_epoch_has_the_figures_of_one_process(runs: tuple[Path, Path, list[str]]) -> None:
    tables = []
    for root in runs[:2]:
        with (root / "stripes" / "a" / "metrics.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert [row["epoch"] for row in tables[0]] == ["0", "1", "2", "3"]  # 0 is the probe
    for alone, both in zip(*tables, strict=True):
        assert both.keys() == alone.keys()
        for key, value in alone.items():
            assert (both[key] == "") is (value == "")
            if value:
                assert float(both[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), key


def test_the_model_and_what_it_was_chosen_from_are_those_of_one_process(
    runs: tuple[Path, Path, list[str]],
) -> None:
    one, two = (json.loads((r / "stripes" / "a" / "metrics.json").read_text()) for r in runs[:2])
    assert two["chosen"] == one["chosen"]
    assert two["best_epoch"] == one["best_epoch"]
    assert two["val"]["n"] == one["val"]["n"] == 16
    assert two["val"]["confusion_matrix"] == one["val"]["confusion_matrix"]
    assert len(one["candidates"]) == 4  # probe, fine-tuned, and two averages
    assert two["candidates"].keys() == one["candidates"].keys()
    for name, values in one["candidates"].items():
        for key in ("val_loss", "val_accuracy"):
            assert two["candidates"][name][key] == pytest.approx(values[key], rel=1e-3, abs=1e-4)
    pairs = [
        [load_file(root / "stripes" / "a" / "model.safetensors") for root in runs[:2]],
        [
            load_checkpoint(root / "stripes" / "a" / "checkpoints" / "last.ckpt")["state_dict"]
            for root in runs[:2]
        ],
    ]
    for alone, both in pairs:
        assert both.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-4)
