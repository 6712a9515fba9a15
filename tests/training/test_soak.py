"""Five hundred epochs with checkpoints on few images: memory and open files do not grow."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from finetune.training.averaging import MovingAverage
from finetune.training.trainer import fit

EPOCHS = 500
ALLOWED_MEBIBYTES = 12
"""Of noise: an epoch that kept its weights (0.3 MiB here) would add 120."""


class Usage(Callback):
    """Note memory and open files after each epoch."""

    def __init__(self):
        self.mebibytes, self.files = [], []

    def on_train_epoch_end(self, *_):
        if len(self.files) % 10 == 0:
            gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mebibytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.files.append(len(list(Path("/proc/self/fd").iterdir())))


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory and files from /proc")
def test_500_epochs_leave_memory_and_files_as_they_are(
    make_module, make_data, make_trainer, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a slow disk is not what is asked about
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 8, stride=8),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4_000),
    )
    backbone.num_features = 4_000
    usage = Usage()
    trainer = make_trainer(usage, MovingAverage(0.9), epochs=EPOCHS)
    fit(trainer, make_module(backbone=backbone), make_data(batch_size=12), resume_from=None)
    assert len(usage.files) == EPOCHS
    second, last = slice(50, 100), slice(450, 500)
    memory = sorted(usage.mebibytes[last])[25] - sorted(usage.mebibytes[second])[25]
    files = max(usage.files[last]) - max(usage.files[second])
    print(f"{EPOCHS} epochs: {memory:+.1f} MiB, {files:+d} open files since the second tenth")
    assert files == 0
    assert memory < ALLOWED_MEBIBYTES
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
