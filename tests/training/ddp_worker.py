"""Train the same in 1, 2 and 3 processes, and write down what each of them saw.

A script, so that no test process forks: ``ddp_worker.py IMAGES OUT``. It imports once and forks
for each process of each training. In ``OUT/<case>-<processes>`` it leaves what a run leaves, and
``rank<r>.json``: the images that a process was shown, and the epochs that it finished.
"""

import io
import json
import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from finetune.data.augment import Augmentation
from finetune.data.batches import Key
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import discover_folder
from finetune.data.labelled_images import Augmented, LabelledImages, Resized, make_targets
from finetune.data.preprocess import Preprocess
from finetune.evaluation.epoch import training_metrics
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing
from finetune.models.heads import create_head
from finetune.training.averaging import MovingAverage
from finetune.training.callbacks import EarlyStop, EpochTable
from finetune.training.hardware import Hardware
from finetune.training.losses import create_loss
from finetune.training.mixing import Mix
from finetune.training.module import FineTuning
from finetune.training.optim import create_optimizer, create_scheduler, parameter_groups
from finetune.training.trainer import create_trainer, fit, quiet_lightning

PROCESSES = (1, 2, 3)
BATCH_SIZE = 6
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
SIZE_PX = 16
SECONDS = 60
"""Longest time for one training; a process that waits for another would wait for minutes."""
CASES: dict[str, dict[str, Any]] = {
    # Stops when an epoch brings nothing better: all processes must see the same one.
    "stops": {"epochs": 30, "patience": 1, "accumulate": 1, "is_balanced": False},
    "accumulates": {"epochs": 3, "patience": None, "accumulate": 2, "is_balanced": True},
}


class Recorded(LabelledImages):
    """Write down which images are asked for."""

    keys: list[Key]

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        self.keys.append(key)
        return super().__getitem__(key)


def make_data(images: Path, *, is_balanced: bool) -> ImageDataModule:
    """Twenty images to train on, two more than three batches, and seven to validate on."""
    folder = discover_folder(images)
    preprocess = Preprocess(SIZE_PX, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    crop = {"name": "RandomResizedCrop", "size": ["image_size_px", "image_size_px"]}
    train = [*folder.samples[:12], *folder.samples[40:48]]
    val = [*folder.samples[20:24], *folder.samples[60:63]]

    def recorded(samples: Any, transform: Any) -> Recorded:
        targets = make_targets(samples, folder.class_names, is_multilabel=False)
        made = Recorded(
            folder.root, samples, targets, transform=transform, seed=0, max_megapixels=1
        )
        made.keys = []
        return made

    return ImageDataModule(
        recorded(train, Augmented(Augmentation([crop], SIZE_PX))),
        recorded(val, Resized(preprocess)),
        batch_size=BATCH_SIZE,
        workers=0,
        seed=0,
        is_balanced=is_balanced,
    )


def make_module(seed: int, *, dropout: float = 0.0, mix: Mix | None = None) -> FineTuning:
    """Make a network without BatchNorm, whose statistics are each process's own on a CPU."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.GELU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.GroupNorm(4, 16),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    head = create_head("cosine", in_features=16, num_classes=2, scale=8.0, dropout=dropout)

    def create_optimizers(parts: Any, steps: int, epochs: int) -> Any:
        groups = parameter_groups(parts, dict.fromkeys(parts, 0.02), weight_decay=0.01)
        made = create_optimizer("sgd", groups, lr=0.02, momentum=0.9)
        settings = {"warmup_epochs": 0.5, "final_lr_factor": 0.1}
        schedule = create_scheduler(
            made, "cosine", total_steps=steps, total_epochs=epochs, settings=settings
        )
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return FineTuning(
        Classifier(backbone, head),
        preprocess=Preprocess(SIZE_PX, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3),
        task="multiclass",
        class_names=["lying", "standing"],
        loss=create_loss(
            "cross_entropy", task="multiclass", label_smoothing=0.1, class_weights=[0.5, 2.0]
        ),
        mix=mix,
        metrics=training_metrics(2, task="multiclass", names=METRICS),
        monitor="val_accuracy",
        freezing=Freezing("none"),
        seed=7,
        create_optimizers=create_optimizers,
    )


def train(case: str, images: Path, run: Path, rank: int, processes: int) -> None:
    """Be one process of a training."""
    settings = CASES[case]
    quiet_lightning()
    data = make_data(images, is_balanced=settings["is_balanced"])
    # Another start in each process: what rank 0 starts from must reach all.
    module = make_module(rank)
    strategy = "ddp" if processes > 1 else "auto"
    table = EpochTable(
        run / "metrics.csv",
        metrics=METRICS,
        monitor="val_accuracy",
        mode="max",
        console=Console(file=io.StringIO()),
    )
    patience = settings["patience"]
    stop = [] if patience is None else [EarlyStop(table, patience, table.console)]
    trainer = create_trainer(
        # In float64 rounding does not add up over the epochs; what differs is a fault.
        Hardware("cpu", processes, 1, strategy, "64-true", {}),
        epochs=settings["epochs"],
        accumulate_batches=settings["accumulate"],
        gradient_clip=1.0,
        monitor="val_accuracy",
        mode="max",
        folder=run,
        stages_open_later=False,
        synchronise_batchnorm=False,
        callbacks=[table, *stop, MovingAverage(0.9)],
        logger=None,
    )
    fit(trainer, module, data, resume_from=None)
    val_keys = list(data.val.keys)  # type: ignore[attr-defined]
    seen = {
        "train": data.train.keys,  # type: ignore[attr-defined]
        "val": val_keys,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "rows": table.rows,
        "val_batches": int(sum(trainer.num_val_batches)),
        "val_after": sum(len(targets) for _, targets in data.val_dataloader()),
    }
    (run / f"rank{rank}.json").write_text(json.dumps(seen))


def start(case: str, images: Path, run: Path, rank: int, processes: int) -> None:
    """Train, in a forked process."""
    os.environ["LOCAL_RANK"] = str(rank)
    train(case, images, run, rank, processes)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def main(images: Path, out: Path) -> None:
    """Run each case with each number of processes."""
    context = multiprocessing.get_context("fork")
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for case in CASES:
        for processes in PROCESSES:
            run = out / f"{case}-{processes}"
            run.mkdir(parents=True)
            os.environ["MASTER_PORT"] = str(free_port())
            started: list[BaseProcess] = [
                context.Process(target=start, args=(case, images, run, rank, processes))
                for rank in range(processes)
            ]
            for process in started:
                process.start()
            for process in started:
                process.join(SECONDS)
            for process in started:
                process.kill()
            codes = [process.exitcode for process in started]
            if any(codes):
                sys.exit(f"{run.name}: exit codes of the processes {codes}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
