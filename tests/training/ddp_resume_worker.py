"""Stop a training of two processes after some of its steps, by a signal to one of them; go on.

A script, so that no test process forks: ``ddp_resume_worker.py IMAGES OUT``. In ``OUT/whole`` a
training runs to its end; in ``OUT/cut-<step>`` it is stopped after that step and resumed. Each
process leaves ``losses-<rank>.json``, and in ``OUT/killed`` what it says when the other is killed.
"""

import io
import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ddp_worker import METRICS, free_port, make_data, make_module
from lightning.pytorch import Callback
from rich.console import Console

from finetune.errors import Stopped, TrainingError
from finetune.training.averaging import MovingAverage
from finetune.training.callbacks import EpochTable
from finetune.training.hardware import Hardware
from finetune.training.mixing import create_mix
from finetune.training.trainer import create_trainer, fit, quiet_lightning

EPOCHS = 4  # of three steps
STEPS = (0, 4, 5, 7, 10)
"""To stop after; the sixth is the last one of an epoch, which validation follows."""
SECONDS = 60


class Stop(Callback):
    """Send a signal to this process in a step."""

    def __init__(self, step: int | None, number: int) -> None:
        self.step, self.number = step, number
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Send it."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: Any, *_: Any) -> None:
        """Write down the loss."""
        self.losses.append(float(outputs["loss"]))


def train(images: Path, run: Path, rank: int, step: int | None, number: int) -> None:
    """Be one of two processes, from the start or from the last checkpoint."""
    os.environ["LOCAL_RANK"] = str(rank)
    quiet_lightning()
    last = run / "checkpoints" / "last.ckpt"
    mix = create_mix(mixup_alpha=0.5, cutmix_alpha=0.5, num_classes=2)
    module = make_module(rank + 10 * last.exists(), dropout=0.3, mix=mix)
    table = EpochTable(
        run / "metrics.csv",
        metrics=METRICS,
        monitor="val_accuracy",
        mode="max",
        console=Console(file=io.StringIO()),
    )
    stop = Stop(step if rank == 1 else None, number)
    trainer = create_trainer(
        Hardware("cpu", 2, 1, "ddp", "32-true", {}),
        epochs=EPOCHS,
        accumulate_batches=1,
        gradient_clip=1.0,
        monitor="val_accuracy",
        mode="max",
        folder=run,
        stages_open_later=False,
        synchronise_batchnorm=False,
        callbacks=[table, stop, MovingAverage(0.7)],
        logger=None,
    )
    data = make_data(images, is_balanced=True)
    said = "finished"
    try:
        fit(trainer, module, data, resume_from=last if last.exists() else None)
    except Stopped:
        said = "stopped"
    except TrainingError as error:
        said = str(error)
    losses = run / f"losses-{rank}.json"
    before = json.loads(losses.read_text())["losses"] if losses.exists() else []
    losses.write_text(json.dumps({"said": said, "losses": before + stop.losses}))


def run_both(images: Path, run: Path, step: int | None, number: int) -> list[int | None]:
    """Start both processes and wait; return how they ended."""
    run.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(free_port())
    started: list[BaseProcess] = [
        context.Process(target=train, args=(images, run, rank, step, number)) for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def main(images: Path, out: Path) -> None:
    """Run all trainings, and print how each process ended."""
    codes = {"whole": [run_both(images, out / "whole", None, signal.SIGTERM)]}
    for step in STEPS:
        run = out / f"cut-{step}"
        parts = [run_both(images, run, stop, signal.SIGTERM) for stop in (step, None)]
        codes[run.name] = parts
    codes["killed"] = [run_both(images, out / "killed", 4, signal.SIGKILL)]
    print(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
