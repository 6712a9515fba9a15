import csv
import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import finetune.training.callbacks
from finetune.config import MetricName
from finetune.training.callbacks import (
    HEADINGS,
    Deadline,
    EarlyStop,
    EpochTable,
    StepProgress,
    write_rows,
)
from finetune.training.checkpoints import load_checkpoint
from finetune.training.trainer import fit

METRICS = ("accuracy", "macro_f1")


def end_epoch(table, *, epoch, is_main=True, epochs=9, lr=(0.1, 0.01), **metrics):
    trainer = SimpleNamespace(
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        current_epoch=epoch,
        optimizers=[SimpleNamespace(param_groups=[{"lr": rate} for rate in lr])],
        is_global_zero=is_main,
        max_epochs=epochs,
    )
    table.on_train_epoch_end(trainer, None)


def make_table(path, *, metrics=METRICS, monitor="val_accuracy", mode="max"):
    console = Console(file=io.StringIO(), width=200)
    return EpochTable(
        path / "metrics.csv", metrics=metrics, monitor=monitor, mode=mode, console=console
    )


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_epoch_adds_a_row_to_the_file(tmp_path):
    table = make_table(tmp_path)
    end_epoch(table, epoch=0, train_loss=1.5, val_loss=1.25, val_accuracy=0.5, other=3.0)
    end_epoch(table, epoch=1, train_loss=0.5, val_loss=0.75, val_accuracy=0.75)
    rows = read(tmp_path / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["val_accuracy"] for row in rows] == ["0.5", "0.75"]
    assert rows[0]["lr"] == "0.1"  # that of the fastest group
    assert rows[0]["val_macro_f1"] == ""
    columns = ["epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1", "lr"]
    assert list(rows[0]) == columns
    assert list(tmp_path.iterdir()) == [tmp_path / "metrics.csv"]


def test_only_the_main_process_writes(tmp_path):
    table = make_table(tmp_path)
    end_epoch(table, epoch=0, is_main=False, val_accuracy=0.5)
    assert len(table.rows) == 1
    assert list(tmp_path.iterdir()) == []
    assert table.console.file.getvalue() == ""


def test_the_terminal_shows_the_same_and_marks_the_best(tmp_path):
    table = make_table(tmp_path)
    end_epoch(table, epoch=0, train_loss=1.5, val_accuracy=0.5)
    end_epoch(table, epoch=1, train_loss=float("nan"), val_accuracy=0.25)
    heading, first, second = table.console.file.getvalue().splitlines()
    assert heading.split()[:2] == ["epoch", "train"]
    assert heading.endswith("  rate")
    assert first.split()[:4] == ["*", "1/9", "1.5000", "–"]
    assert second.split()[:3] == ["2/9", "–", "–"]
    assert first.split()[-1] == "1.00e-01"
    assert len(heading) == len(first) == len(second)


@given(
    st.lists(st.integers(0, 5).map(lambda n: n / 5), min_size=1), st.sampled_from(["max", "min"])
)
def test_the_first_of_equally_good_epochs_is_the_best(values, mode):
    table = make_table(Path(), monitor="val_loss", mode=mode)
    table.rows = [{"epoch": index + 1.0, "val_loss": value} for index, value in enumerate(values)]
    best = max(values) if mode == "max" else min(values)
    assert table.best_epoch == values.index(best) + 1


def test_every_metric_of_the_config_has_its_column(tmp_path):
    metrics = get_args(MetricName)
    assert set(HEADINGS) == set(metrics)
    table = make_table(tmp_path, metrics=metrics)
    end_epoch(table, epoch=0, val_auroc=0.75, val_sensitivity=0.5)
    heading, row = table.console.file.getvalue().splitlines()
    assert "AUROC" in heading
    assert "sens." in heading
    assert len(heading) == len(row)
    assert read(tmp_path / "metrics.csv")[0]["val_sensitivity"] == "0.5"


def test_four_metrics_fit_into_80_columns(tmp_path):
    metrics = ("auroc", "sensitivity", "specificity", "balanced_accuracy")
    table = make_table(tmp_path, metrics=metrics)
    end_epoch(table, epoch=98, epochs=100, train_loss=10.5, val_auroc=1.0)
    assert all(len(line) <= 80 for line in table.console.file.getvalue().splitlines())


def test_an_undefined_metric_is_a_dash_and_never_the_best(tmp_path):
    table = make_table(tmp_path)
    end_epoch(table, epoch=0, val_accuracy=float("nan"))
    end_epoch(table, epoch=1, val_accuracy=0.0)
    assert table.best_epoch == 2
    assert table.console.file.getvalue().splitlines()[1].split()[1:5] == ["1/9", "–", "–", "–"]
    assert read(tmp_path / "metrics.csv")[0]["val_accuracy"] == "nan"


def test_the_rows_travel_in_the_checkpoint(tmp_path):
    first = make_table(tmp_path)
    end_epoch(first, epoch=0, val_accuracy=0.5)
    torch.save(first.state_dict(), tmp_path / "state.pt")

    second = make_table(tmp_path)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    end_epoch(second, epoch=1, val_accuracy=0.75)
    assert [row["val_accuracy"] for row in read(tmp_path / "metrics.csv")] == ["0.5", "0.75"]
    assert second.best_epoch == 2
    assert "train loss" in second.console.file.getvalue()  # also a resumed run shows the headings


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "metrics.csv"
    write_rows(path, [{"epoch": 1.0, "lr": 0.1}], columns=["epoch", "lr"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_rows(path, [{"epoch": 1.0, "unknown": 0.1}], columns=["epoch", "lr"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_bar_counts_batches_and_gives_the_terminal_back():
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True)
    bar = StepProgress(console)
    trainer = SimpleNamespace(
        current_epoch=1, max_epochs=3, num_training_batches=4, num_val_batches=[2]
    )
    bar.on_train_epoch_start(trainer, None)
    for batch in range(4):
        bar.on_train_batch_end(trainer, None, None, None, batch)
    bar.progress.refresh()
    assert "Epoch 2/3" in output.getvalue()
    assert "4/4" in output.getvalue()
    bar.on_validation_start(trainer, None)
    bar.on_validation_batch_end(trainer, None, None, None, 0)
    bar.progress.refresh()
    assert "Epoch 2/3, validation" in output.getvalue()
    assert "1/2" in output.getvalue()
    assert not bar.progress.finished
    bar.on_exception(trainer, None, KeyboardInterrupt())
    assert not bar.progress.live.is_started


class Ticks:
    """A clock that goes on by one second each time it is looked at."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1
        return self.now


def read_epochs(folder):
    return [{key: float(value) for key, value in row.items()} for row in read(folder)]


def test_a_deadline_that_is_over_lets_one_step_end_with_validation_and_checkpoints(
    make_module, make_data, make_trainer, tmp_path
):
    trainer = make_trainer(Deadline(time.monotonic() - 1, Console(quiet=True)), epochs=5)
    fit(trainer, make_module(), make_data(), resume_from=None)
    assert trainer.global_step == 1
    [row] = read_epochs(tmp_path / "run" / "metrics.csv")
    assert row["epoch"] == 1
    assert row["val_loss"] > 0
    assert 0 <= row["val_accuracy"] <= 1
    for name in ("best", "last"):
        checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
        assert checkpoint["global_step"] == 1


def test_a_deadline_leaves_time_for_two_validations(
    make_module, make_data, make_trainer, tmp_path, monkeypatch
):
    # Steps end at 1, 2, 3; validation lasts from 4 to 5; steps end at 6 and 7: 7 + 2 * 1 is late.
    monkeypatch.setattr(finetune.training.callbacks, "time", Ticks())
    deadline = Deadline(9.0, Console(quiet=True))
    trainer = make_trainer(deadline, epochs=5)
    fit(trainer, make_module(), make_data(), resume_from=None)
    assert trainer.global_step == 3 + 2
    rows = read_epochs(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["val_loss"] > 0 for row in rows)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 5
    assert deadline.validation_seconds == 1


def test_a_deadline_far_away_changes_nothing(make_module, make_data, make_trainer, tmp_path):
    states = []
    late = Deadline(time.monotonic() + 3600, Console(quiet=True))
    for folder, callbacks in (("with", [late]), ("without", [])):
        module = make_module()
        trainer = make_trainer(*callbacks, folder=folder)
        fit(trainer, module, make_data(), resume_from=None)
        assert trainer.global_step == 6
        states.append(module.classifier.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("says", "stops"), [(True, True), (False, False)])
def test_the_first_process_decides_for_all(says, stops):
    asked = []

    def broadcast(is_late):
        asked.append(is_late)
        return says

    trainer = SimpleNamespace(
        strategy=SimpleNamespace(broadcast=broadcast),
        should_stop=False,
        current_epoch=0,
        max_epochs=2,
    )
    deadline = time.monotonic() + (3600 if says else -1)  # this process thinks otherwise
    Deadline(deadline, Console(quiet=True)).on_train_batch_end(trainer, None, None, None, 0)
    assert asked == [not says]
    assert trainer.should_stop is stops


scores = st.lists(
    st.tuples(
        st.sampled_from([0.25, 0.5, 0.75, float("nan")]),
        st.sampled_from([0.25, 0.5, 0.75, float("nan")]),
    ),
    max_size=8,
)


@given(scores, st.sampled_from(["max", "min"]))
def test_an_epoch_gains_when_its_value_or_its_loss_is_a_new_best(rows, mode):
    table = EpochTable(
        None, metrics=METRICS, monitor="val_accuracy", mode=mode, console=Console(quiet=True)
    )
    table.rows = [
        {"epoch": n, "val_accuracy": value, "val_loss": loss}
        for n, (value, loss) in enumerate(rows)
    ]
    better = max if mode == "max" else min

    def is_new(seen, choose):
        known = [value for value in seen if value == value]
        return (
            bool(known)
            and known[-1] is seen[-1]
            and seen[-1] not in known[:-1]
            and (choose(known) == seen[-1])
        )

    gains = [
        n
        for n in range(1, len(rows) + 1)
        if is_new([value for value, _ in rows[:n]], better)
        or is_new([loss for _, loss in rows[:n]], min)
    ]
    assert table.epochs_without_gain == len(rows) - (gains[-1] if gains else 0)


@pytest.mark.parametrize(("epoch", "stops"), [(0, False), (1, True), (8, False)])
def test_training_ends_after_as_many_epochs_without_gain(tmp_path, epoch, stops):
    table = make_table(tmp_path)
    table.start({"val_accuracy": 0.75, "val_loss": 0.25}, 9)
    trainer = SimpleNamespace(
        should_stop=False,
        current_epoch=epoch,
        max_epochs=9,
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    stop = EarlyStop(table, 2, table.console)
    for past in range(epoch + 1):
        end_epoch(table, epoch=past, val_accuracy=0.75, val_loss=0.5)
    stop.on_train_epoch_end(trainer, None)
    assert trainer.should_stop is stops
    assert ("Nothing better for 2 epochs" in table.console.file.getvalue()) is stops


def test_the_first_process_decides_whether_to_stop(tmp_path):
    table = make_table(tmp_path)
    trainer = SimpleNamespace(
        should_stop=False,
        current_epoch=0,
        max_epochs=9,
        strategy=SimpleNamespace(broadcast=lambda value: not value),
    )
    end_epoch(table, epoch=0, val_accuracy=0.75, val_loss=0.5)
    EarlyStop(table, 1, table.console).on_train_epoch_end(trainer, None)
    assert trainer.should_stop
