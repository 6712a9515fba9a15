"""Curves that are drawn while the training runs, and that agree with every other record."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.cli import main
from finetune.commands import live_curves
from finetune.commands.live_curves import LiveCurves
from finetune.commands.report_training import read_epochs
from finetune.run import RunDirectory
from finetune.training.callbacks import EpochTable


@pytest.fixture
def epochs(tmp_path: Path) -> EpochTable:
    table = EpochTable(
        tmp_path / "metrics.csv",
        metrics=["accuracy"],
        monitor="val_accuracy",
        mode="max",
        console=Console(file=io.StringIO()),
    )
    table.rows = [{"epoch": 1.0, "train_loss": 0.7, "val_loss": 0.6, "val_accuracy": 0.5}]
    return table


def test_it_draws_what_there_is(tmp_path: Path, epochs: EpochTable) -> None:
    LiveCurves(RunDirectory(tmp_path))(epochs)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_takes_little_of_the_time(
    tmp_path: Path, epochs: EpochTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drawing takes a second, an epoch two: one in ten epochs is drawn."""
    clock = [0.0]
    drawn = []

    def draw(run: RunDirectory, table: EpochTable) -> None:
        clock[0] += 1.0
        drawn.append(len(table.rows))

    monkeypatch.setattr(live_curves.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live_curves, "draw_curves", draw)
    curves = LiveCurves(RunDirectory(tmp_path))
    for _ in range(100):
        clock[0] += 2.0
        curves(epochs)
    assert drawn[0] == 1
    assert 8 <= len(drawn) <= 11


def test_tensorboard_csv_and_report_have_the_same_numbers(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = live_curves.draw_curves
    monkeypatch.setattr(
        live_curves, "draw_curves", lambda run, table: (seen.append(run.path), real(run, table))
    )
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    assert main([*words, "trainer.epochs=2", "logger=tensorboard"]) == 0
    run = tmp_path / "stripes" / "a"
    assert seen  # drawn before the end, where `outcome` draws by its own name
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in table] == [1, 2]
    assert [row["epoch"] for row in read_epochs(RunDirectory(run))] == [1, 2]
    (events,) = run.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    for name in ("train_loss", "val_loss", "val_accuracy"):
        scalars = [event.value for event in board.Scalars(name)]
        ours = [row[name] for row in read_epochs(RunDirectory(run))]
        assert scalars == pytest.approx(ours, rel=1e-6)
        assert [float(row[name]) for row in table] == ours
