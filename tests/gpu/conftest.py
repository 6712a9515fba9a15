"""A training on one GPU that takes seconds; the tests that use it are skipped without one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.cli import main


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is false: no CUDA device here")


@pytest.fixture
def train_on_gpu(stripes: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains with further words and gives the run directory."""

    def train(*words: str, name: str = "a") -> Path:
        settings = [
            "train",
            f"dataset.root={stripes}",
            f"runs={tmp_path}",
            f"name={name}",
            "model=nano",
            "model.pretrained=false",
            "model.image_size_px=32",
            "augmentation=light",
            "trainer.accelerator=gpu",
            "trainer.devices=1",
            "trainer.epochs=4",
            "trainer.batch_size=16",
            "optimizer.lr=3e-3",
            "optimizer.backbone_lr_factor=1",
            "dataset.workers=0",
        ]
        assert main([*settings, *words]) == 0
        return tmp_path / "stripes" / name

    return train
