"""Two and three processes on a CPU train as one does: same images, figures, weights, end.

The network has no BatchNorm: on a CPU, each process has batch statistics of its own.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

from finetune.training.checkpoints import load_checkpoint

CASES = ("stops", "accumulates")
SEVERAL = (2, 3)
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def trainings(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train each case in 1, 2 and 3 processes."""
    out = tmp_path_factory.mktemp("ddp")
    worker = Path(__file__).with_name("ddp_worker.py")
    mine = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK")}
    done = subprocess.run(
        [sys.executable, str(worker), str(stripes), str(out)],
        env={**mine, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def ranks_of(trainings, case, processes):
    folder = trainings / f"{case}-{processes}"
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


def batches_of(keys, size):
    return [[tuple(key) for key in keys[at : at + size]] for at in range(0, len(keys), size)]


several = pytest.mark.parametrize("processes", SEVERAL)
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@several
def test_each_batch_joined_is_the_batch_of_one_process(trainings, case, processes):
    (alone,) = ranks_of(trainings, case, 1)
    shares = [
        batches_of(rank["train"], 6 // processes) for rank in ranks_of(trainings, case, processes)
    ]
    joined = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert joined == batches_of(alone["train"], 6)
    assert len(joined) == 3 * alone["epochs"]
    orders = [[draw for _, draw in chain(*joined[at : at + 3])] for at in range(0, len(joined), 3)]
    assert all(first != second for first, second in pairwise(orders))


def test_each_validation_image_is_looked_at_once_an_epoch_by_all_processes_together(trainings):
    for case in CASES:
        for processes in (1, *SEVERAL):
            ranks = ranks_of(trainings, case, processes)
            looked = Counter(index for rank in ranks for _, index in rank["val"])
            assert looked == dict.fromkeys(range(7), ranks[0]["epochs"])
            # With FSDP, another number of batches than the others' would wait for ever.
            assert len({rank["val_batches"] for rank in ranks}) == 1


def test_who_asks_after_the_training_gets_all_validation_images(trainings):
    for processes in (1, *SEVERAL):
        assert all(rank["val_after"] == 7 for rank in ranks_of(trainings, "stops", processes))


@every_case
@several
def test_loss_and_metrics_of_each_epoch_are_those_of_one_process(trainings, case, processes):
    (alone,) = ranks_of(trainings, case, 1)
    expected = {
        "epoch", "train_loss", "val_loss", "lr",
        "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_auroc",
    }  # fmt: skip
    assert all(set(row) == expected for row in alone["rows"])
    for rank in ranks_of(trainings, case, processes):
        for mine, row in zip(rank["rows"], alone["rows"], strict=True):
            assert mine == pytest.approx(row, abs=TOLERANCE)


@several
def test_early_stopping_stops_all_processes_in_the_epoch_of_one(trainings, processes):
    (alone,) = ranks_of(trainings, "stops", 1)
    assert 4 <= alone["epochs"] < 30
    # Some epochs got better, so what one process alone had seen could have said otherwise.
    assert len({row["val_accuracy"] for row in alone["rows"]}) >= 3
    ends = {(rank["epochs"], rank["steps"]) for rank in ranks_of(trainings, "stops", processes)}
    assert ends == {(alone["epochs"], 3 * alone["epochs"])}


@several
def test_accumulated_batches_make_the_steps_of_one_process(trainings, processes):
    (alone,) = ranks_of(trainings, "accumulates", 1)
    assert alone["steps"] == 2 * 3  # of three batches, two make a step and the last another
    assert {rank["steps"] for rank in ranks_of(trainings, "accumulates", processes)} == {6}


@every_case
@several
@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_hold_the_weights_averages_and_epoch_of_one(trainings, case, processes, name):
    one, more = (
        load_checkpoint(trainings / f"{case}-{count}" / "checkpoints" / f"{name}.ckpt")
        for count in (1, processes)
    )
    assert more["epoch"] == one["epoch"]
    assert more["global_step"] == one["global_step"]
    averages = [checkpoint["callbacks"]["MovingAverage"] for checkpoint in (one, more)]
    assert averages[0]["updates"] == averages[1]["updates"] == one["global_step"]
    pairs = [
        (one["state_dict"], more["state_dict"]),
        (averages[0]["weights"], averages[1]["weights"]),
    ]
    for alone, both in pairs:
        assert alone.keys() == both.keys()
        for key, value in alone.items():
            torch.testing.assert_close(both[key], value, rtol=0, atol=TOLERANCE)


def test_the_weights_have_moved_and_their_average_lags_behind(trainings):
    """Else the comparisons above would say nothing."""
    checkpoint = load_checkpoint(trainings / "accumulates-2" / "checkpoints" / "last.ckpt")
    average = checkpoint["callbacks"]["MovingAverage"]["weights"]
    weights = {
        key.removeprefix("classifier."): value for key, value in checkpoint["state_dict"].items()
    }
    assert any((weights[key] - value).abs().max() > 1e-3 for key, value in average.items())
