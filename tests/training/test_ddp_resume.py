"""Two processes that are stopped by a signal to one of them go on to the same end, bit by bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.training.checkpoints import load_checkpoint

STEPS = (0, 4, 5, 7, 10)


@pytest.fixture(scope="module")
def trainings(stripes, tmp_path_factory):
    """Run the script; return its folder, and how the processes ended."""
    out = tmp_path_factory.mktemp("ddp_resume")
    script = Path(__file__).with_name("ddp_resume_worker.py")
    mine = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK")}
    done = subprocess.run(
        [sys.executable, str(script), str(stripes), str(out)],
        env={**mine, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, json.loads(done.stdout.strip().split("\n")[-1])


def losses_of(run):
    return [json.loads((run / f"losses-{rank}.json").read_text())["losses"] for rank in range(2)]


def states_of(checkpoint):
    return checkpoint["state_dict"], checkpoint["callbacks"]["MovingAverage"]["weights"]


def test_both_processes_stop_and_end(trainings):
    _, codes = trainings
    ended = {"whole": [[0, 0]], **{f"cut-{step}": [[0, 0], [0, 0]] for step in STEPS}}
    assert codes == {**ended, "killed": [[0, -signal.SIGKILL]]}


@pytest.mark.parametrize("step", STEPS)
def test_the_resumed_training_is_the_uninterrupted_one(trainings, step):
    out, _ = trainings
    whole, cut = out / "whole", out / f"cut-{step}"
    assert losses_of(cut) == losses_of(whole)
    assert [len(losses) for losses in losses_of(whole)] == [12, 12]
    assert (cut / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for name in ("best", "last"):
        left, right = (
            load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for run in (whole, cut)
        )
        assert left["global_step"] == right["global_step"]
        for one, two in zip(states_of(left), states_of(right), strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[key], two[key]) for key in one)
    print(f"stopped after step {step + 1} of 12 in two processes: exact")


def test_when_one_is_killed_the_other_ends_and_says_so(trainings):
    run = trainings[0] / "killed"
    said = json.loads((run / "losses-0.json").read_text())["said"]
    assert said.startswith("One of the 2 processes that train together has ended"), said
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3
