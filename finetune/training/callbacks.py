"""What happens beside the steps: the table of epochs, on the terminal and in a file."""

import csv
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.run import replacing

HEADINGS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "sensitivity": "sens.",
    "specificity": "spec.",
    "mean_average_precision": "mAP",
}
"""Metrics of validation and their headings on the terminal."""
_WIDTHS = {"epoch": 7, "lr": 8}


class EpochTable(Callback):
    """Write one row per epoch to a CSV file and to the terminal.

    Args:
        path: the CSV file; rows of an interrupted run are kept when it goes on. None for no file.
        metrics: names of the metrics of validation, a column ``val_<name>`` each.
        monitor: the metric that decides which epoch is best.
        mode: ``max`` or ``min``.
        console: where the rows are printed.
        on_row: called with this table after each epoch, in the first process.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        metrics: Sequence[str],
        monitor: str,
        mode: str,
        console: Console,
        on_row: Callable[["EpochTable"], None] | None = None,
    ) -> None:
        self.path = path
        self.headings = {
            "epoch": "epoch",
            "train_loss": "train loss",
            "val_loss": "val loss",
            **{f"val_{name}": HEADINGS[name] for name in metrics},
            "lr": "rate",
        }
        self.monitor = monitor
        self.mode = mode
        self.console = console
        self.on_row = on_row
        self.rows: list[dict[str, float]] = []
        self._has_headings = False

    def start(self, values: Mapping[str, float], epochs: int) -> None:
        """Put a row of epoch 0 before the others: what the first step starts from."""
        self.rows = [{"epoch": 0.0, **values}]
        self._write()
        self._print(epochs)

    def state_dict(self) -> dict[str, Any]:
        """Keep the rows in the checkpoint, so that a resumed run has the whole table."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the epochs that were finished before."""
        self.rows = list(state_dict["rows"])

    @property
    def best_epoch(self) -> int:
        """The epoch (0: the probe) with the best monitored value, of equals the smallest loss."""
        sign = 1 if self.mode == "max" else -1

        def goodness(row: dict[str, float]) -> tuple[float, float]:
            value = sign * row.get(self.monitor, math.nan)
            loss = row.get("val_loss", math.nan)
            return (
                -math.inf if math.isnan(value) else value,
                -math.inf if math.isnan(loss) else -loss,
            )

        return int(max(self.rows, key=goodness)["epoch"])

    @property
    def epochs_without_gain(self) -> int:
        """Epochs at the end in which neither the monitored value nor the loss was a new best."""
        sign = 1 if self.mode == "max" else -1
        best_value, best_loss, since = -math.inf, math.inf, 0
        for row in self.rows:
            value, loss = sign * row.get(self.monitor, math.nan), row.get("val_loss", math.nan)
            # Of NaN, neither is true.
            since = 0 if value > best_value or loss < best_loss else since + 1
            best_value = max(best_value, value)
            best_loss = min(best_loss, loss)
        return since

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of this epoch."""
        del pl_module
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        row = {"epoch": trainer.current_epoch + 1.0, "lr": max(rates), **values}
        self.rows.append({key: row[key] for key in self.headings if key in row})
        if trainer.is_global_zero:
            self._write()
            self._print(trainer.max_epochs or 1)
            if self.on_row is not None:
                self.on_row(self)

    def _write(self) -> None:
        if self.path is not None:
            write_rows(self.path, self.rows, columns=self.headings)

    def _print(self, epochs: int) -> None:
        row = self.rows[-1]
        widths = {key: max(len(head), _WIDTHS.get(key, 6)) for key, head in self.headings.items()}
        if not self._has_headings:
            self._has_headings = True
            heads = (f"{head:>{widths[key]}}" for key, head in self.headings.items())
            self.console.print("[bold]  " + "  ".join(heads))
        cells = {key: _cell(key, row.get(key, math.nan)) for key in self.headings}
        cells["epoch"] = f"{row['epoch']:.0f}/{epochs}" if row["epoch"] else "probe"
        text = "  ".join(f"{cell:>{widths[key]}}" for key, cell in cells.items())
        best = row["epoch"] == self.best_epoch
        self.console.print(f"{'*' if best else ' '} {text}", style="bold" if best else "")


class StepProgress(Callback):
    """Draw a bar of the running epoch; rows that are printed meanwhile stand above it.

    Args:
        console: the one that the rows are printed on.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("", total=None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a bar where a run goes on in the middle of an epoch."""
        self.on_train_epoch_start(trainer, pl_module)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self.progress.update(self.task, completed=done)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new bar."""
        del pl_module
        text = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.progress.reset(self.task, description=text, total=trainer.num_training_batches)
        self.progress.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move on by one batch."""
        del trainer, pl_module, outputs, batch, batch_idx
        self.progress.advance(self.task)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the validation images are being looked at."""
        del pl_module
        text = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, validation"
        self.progress.reset(self.task, description=text, total=sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on by one batch."""
        del trainer, pl_module, outputs, batch, batch_idx, dataloader_idx
        self.progress.advance(self.task)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        del trainer, pl_module, exception
        self.progress.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        del trainer, pl_module, stage
        self.progress.stop()


class EarlyStop(Callback):
    """End the training when nothing has got better for some epochs; the probe counts as one.

    A falling loss counts as better too: of few validation images, accuracy moves in large steps.

    Args:
        table: of the epochs, a callback before this one; the first process's decides for all,
            since it alone knows the probe.
        patience: epochs without gain, >= 1.
        console: where it is said.
    """

    def __init__(self, table: EpochTable, patience: int, console: Console) -> None:
        self.table = table
        self.patience = patience
        self.console = console

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count."""
        del pl_module
        is_over = self.table.epochs_without_gain >= self.patience
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.strategy.broadcast(is_over) and not is_last:
            trainer.should_stop = True
            self.console.print(
                f"  Nothing better for {self.patience} epochs: training ends here "
                "(trainer.early_stopping_patience)."
            )


class Deadline(Callback):
    """End the training at a step after which validation would hardly end in time.

    The step ends its epoch: validation follows, and a checkpoint, as after any other epoch.

    Args:
        deadline: by ``time.monotonic()``; the first process's clock decides for all.
        console: where it is said.
    """

    def __init__(self, deadline: float, console: Console) -> None:
        self.deadline = deadline
        self.console = console
        self.validation_seconds = 0.0
        self._validation_began = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        del trainer, pl_module
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember how long a validation takes."""
        del trainer, pl_module
        self.validation_seconds = time.monotonic() - self._validation_began

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Look at the clock."""
        del pl_module, arguments
        is_late = time.monotonic() + 2 * self.validation_seconds >= self.deadline
        if trainer.strategy.broadcast(is_late) and not trainer.should_stop:
            trainer.should_stop = True
            epoch = f"{trainer.current_epoch + 1} of {trainer.max_epochs}"
            self.console.print(f"  The time is up: trainer.max_time_minutes ends epoch {epoch}.")


def write_rows(path: Path, rows: list[dict[str, float]], *, columns: Iterable[str]) -> None:
    """Write ``metrics.csv`` whole or not at all; what is missing is empty, undefined is ``nan``."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), restval="")
        writer.writeheader()
        writer.writerows({**row, "epoch": int(row["epoch"])} for row in rows)


def _cell(key: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2e}" if key == "lr" else f"{value:.4f}"
