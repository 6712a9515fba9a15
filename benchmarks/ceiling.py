"""Images a second of real training, beside what the same step does on tensors that lie in memory.

    .venv/bin/python benchmarks/ceiling.py FOLDER [--weights FILE] [--option NAME=VALUE …]

One `fit` as `finetune train` does it, with its defaults: epochs on decoded and augmented JPEGs
take turns with epochs on random images in memory, and with the bare step (forward, loss, backward,
clip, update; no Lightning, no average of the weights). So a busy machine slows all alike. The
first round of each is left out, and validation is not counted.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from report import show, table
from rich.console import Console
from torch import Tensor, nn

from finetune import cli
from finetune.commands.components import (
    build_classifier,
    build_hardware,
    build_module,
    build_preprocess,
    build_trainer,
    monitor_key,
    monitor_mode,
)
from finetune.commands.dataset import audit_images, find_images, split_images
from finetune.commands.loaders import build_data
from finetune.commands.recipe import settle_recipe
from finetune.commands.settle import settle
from finetune.config import TrainConfig
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import ImageFolder
from finetune.run import RunDirectory
from finetune.training.callbacks import EpochTable
from finetune.training.module import FineTuning
from finetune.training.trainer import fit, quiet_lightning

REAL, MEMORY, BARE = "decoded images", "images in memory", "images in memory, bare step"
TARGET = {"cpu": 0.92, "gpu": 0.90}
IMAGES = {"cpu": 640, "gpu": 12_800}
"""Images of an epoch: enough that its beginning, when the loader is empty, is as rare as it is."""
VAL_IMAGES = 32
DISTINCT_BATCHES = 4


class TakingTurns:
    """Gives the real batches in even epochs, and as many from memory in odd ones."""

    def __init__(self, real: Any, batches: list[tuple[Tensor, Tensor]], trainer: Trainer) -> None:
        self.real = real
        self.batches = batches
        self.trainer = trainer
        self.batch_sampler = real.batch_sampler  # Lightning tells it the epoch

    def __len__(self) -> int:
        return len(self.real)

    def __iter__(self) -> Iterator[Any]:
        if self.trainer.current_epoch % 2 == 0:
            return iter(self.real)
        return (self.batches[i % len(self.batches)] for i in range(len(self)))


class Stopwatch(Callback):
    """Times the batches of each epoch, and runs the bare step after each pair of epochs.

    Args:
        batches: in memory.
        gradient_clip: as in the training.
    """

    def __init__(
        self, batches: list[tuple[Tensor, Tensor]], *, gradient_clip: float | None
    ) -> None:
        self.batches = batches
        self.gradient_clip = gradient_clip
        self.rates: dict[str, list[float]] = defaultdict(list)
        self.waits: dict[str, list[float]] = defaultdict(list)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: FineTuning) -> None:
        """Begin to count."""
        del trainer, pl_module
        self.start = self.batch_end = now()
        self.wait = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Count as waiting what lay between the steps."""
        self.wait += time.perf_counter() - self.batch_end

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note the rate after the last batch; validation comes next."""
        self.batch_end = time.perf_counter()
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        seconds = now() - self.start
        kind = REAL if trainer.current_epoch % 2 == 0 else MEMORY
        images = trainer.num_training_batches * len(self.batches[0][0])
        self.rates[kind].append(images / seconds)
        self.waits[kind].append(self.wait / seconds)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: FineTuning) -> None:
        """Run the bare step as often."""
        if trainer.current_epoch % 2 == 0:
            return
        pl_module.train()
        start = now()
        for i in range(trainer.num_training_batches):
            self._step(trainer, pl_module, *self.batches[i % len(self.batches)])
        seconds = now() - start
        images = trainer.num_training_batches * len(self.batches[0][0])
        self.rates[BARE].append(images / seconds)

    def _step(self, trainer: Trainer, module: FineTuning, images: Tensor, targets: Tensor) -> None:
        (optimizer,) = trainer.optimizers
        with trainer.precision_plugin.forward_context():
            loss = module.loss(module(images), targets)
        optimizer.zero_grad()
        loss.backward()
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), self.gradient_clip)
        optimizer.step()


def now() -> float:
    """Give the time when the device has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def compose(*words: str) -> TrainConfig:
    """Return what the command `finetune train` would get, and run nothing."""
    jobs: list[TrainConfig] = []
    command = SimpleNamespace(run=lambda config, _: jobs.append(config))
    with patch.object(cli, "import_module", lambda _: command):
        cli.train(*words)
    return jobs[0]


def stretch(folder: ImageFolder, count: int) -> ImageFolder:
    """Repeat or drop training images until there are ``count``; keep a few of validation."""
    train = [sample for sample in folder.samples if sample.split == "train"]
    val = [sample for sample in folder.samples if sample.split == "val"]
    repeated = (train * -(-count // len(train)))[:count]
    return replace(folder, samples=(*repeated, *val[:: max(1, len(val) // VAL_IMAGES)]))


def measure(arguments: argparse.Namespace, temporary: Path) -> tuple[Stopwatch, str]:
    """Train, and return the stopwatch and what was trained."""
    quiet_lightning()
    epochs = 2 * (arguments.rounds + 1)
    words = [f"dataset.root={arguments.folder}", f"trainer.epochs={epochs}"]
    words += [f"cache_folder={temporary}", *arguments.option]
    if arguments.weights is not None:
        words.append(f"model.weights={arguments.weights}")
    config = compose(*words)
    console = Console(quiet=True)
    hardware = build_hardware(config)
    folder = find_images(config.dataset, config.task)
    audit = audit_images(config.dataset, folder, cache_folder=config.cache_folder, console=console)
    folder = split_images(config.dataset, folder, audit, task=config.task, seed=config.seed)
    config, _ = settle(config, folder)
    config, _ = settle_recipe(config, folder, audit, hardware)
    folder = stretch(folder, arguments.images or IMAGES[hardware.accelerator])

    seed_everything(config.seed, verbose=False)
    classifier = build_classifier(
        config, num_classes=len(folder.class_names), load_weights=arguments.weights is not None
    )
    preprocess = build_preprocess(config, classifier)
    data = build_data(config, folder, audit, preprocess, hardware)
    module = build_module(config, classifier, preprocess, folder)
    directory = RunDirectory(temporary)
    rows = EpochTable(
        directory.epochs,
        metrics=config.dataset.metrics,
        monitor=monitor_key(config),
        mode=monitor_mode(config),
        console=console,
    )
    trainer = build_trainer(config, hardware, directory, rows, console)
    batches = random_batches(
        data, trainer, preprocess.image_size_px, num_classes=len(folder.class_names)
    )
    stopwatch = Stopwatch(batches, gradient_clip=config.trainer.gradient_clip)
    trainer.callbacks.append(stopwatch)
    real = data.train_dataloader
    with patch.object(data, "train_dataloader", lambda: TakingTurns(real(), batches, trainer)):
        fit(trainer, module, data, resume_from=None)
    return stopwatch, (
        f"{config.model.backbone}, {preprocess.image_size_px} px, batches of {data.batch_size}, "
        f"{hardware.precision}, {torch.get_num_threads()} threads, {data.workers} workers; epochs "
        f"of {len(data.train)} images of {arguments.folder.name}, {arguments.rounds} rounds"
    )


def random_batches(
    data: ImageDataModule, trainer: Trainer, size_px: int, *, num_classes: int
) -> list[tuple[Tensor, Tensor]]:
    """Make batches of the kind that the loader gives, on the device."""
    device = trainer.strategy.root_device
    images, targets = data.train[0, 0]
    size = data.batch_size
    assert targets.ndim == 0, "one class per image"
    return [
        (
            torch.randint(256, (size, 3, size_px, size_px), device=device).to(images.dtype),
            torch.randint(num_classes, (size,), device=device),
        )
        for _ in range(DISTINCT_BATCHES)
    ]


def main() -> None:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", type=Path, help="without them: random, which is as fast")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, help="of an epoch; 640, on a GPU 12,800")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        stopwatch, what = measure(arguments, Path(temporary))
    rates = {kind: some[1:] for kind, some in stopwatch.rates.items()}  # without the first round
    rows = []
    for kind in (BARE, MEMORY, REAL):
        ratios = [rate / bare for rate, bare in zip(rates[kind], rates[BARE], strict=True)]
        waits = stopwatch.waits[kind][1:]
        wait = f"{100 * statistics.median(waits):.1f} %" if waits else "–"
        median = statistics.median(rates[kind])
        rows.append([kind, f"{median:,.1f}", f"{statistics.median(ratios):.3f}", wait])
    ratio = float(rows[-1][2])
    target = TARGET["gpu" if torch.cuda.is_available() else "cpu"]
    verdict = f"Ratio {ratio:.2f}, {'at least' if ratio >= target else '**below**'} {target:.2f}."
    headings = ("training on", "images/s", "ratio", "between steps")
    show(
        "Ceiling" if target == TARGET["cpu"] else "Ceiling, GPU",
        f"{what}. Medians of the rounds.\n\n{table(headings, rows)}\n\n{verdict}",
        writes=arguments.write,
    )


if __name__ == "__main__":
    main()
