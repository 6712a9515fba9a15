"""Where a run goes on, and how a command that is started again finds its run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.commands.going_on import is_restart, launcher_id
from finetune.commands.requeue import requeue
from finetune.training.checkpoints import AtomicCheckpointIO, load_checkpoint, newest_valid


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "big"}, "slurm big 12"),
        ({"TORCHELASTIC_RUN_ID": "mine", "GROUP_WORLD_SIZE": "4"}, "torchrun mine"),
        ({"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2"}, None),
        (
            {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1"},
            f"torchrun {os.uname().nodename} {os.getppid()}",
        ),
    ],
)
def test_the_attempts_of_a_job_share_a_name(environ: dict[str, str], expected: str | None) -> None:
    assert launcher_id(environ) == expected


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restart_is_told_by_the_count(name: str) -> None:
    assert [is_restart({name: count}) for count in ("0", "1", "12", "")] == [
        False,
        True,
        True,
        False,
    ]
    assert not is_restart({})


def save(path: Path, step: int) -> None:
    content = {"state_dict": {}, "global_step": step, "epoch": 0}
    AtomicCheckpointIO().save_checkpoint(content, path)


def test_the_newest_checkpoint_is_that_of_the_latest_step(tmp_path: Path) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    save(last, 7)
    save(best, 7)
    os.utime(best, (2**31, 2**31))
    assert newest_valid([last, best]) == (last, [])
    save(best, 9)
    os.utime(best, (0, 0))
    assert newest_valid([last, best, tmp_path / "gone.ckpt"]) == (best, [])


def test_what_is_damaged_is_named_and_left(tmp_path: Path) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    save(last, 7)
    save(best, 3)
    content = last.read_bytes()
    for damage in (b"", content[:-1], content[:50], content[:40] + b"x" + content[41:]):
        last.write_bytes(damage)
        found, (said,) = newest_valid([last, best])
        assert found == best
        assert said.startswith(f"{last} is not a checkpoint of finetune: ")
        assert last.read_bytes() == damage
    best.unlink()
    assert newest_valid([last, best])[0] is None


def test_a_run_that_saved_nothing_begins_again(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"dataset.root={stripes}", *quick, f"runs={tmp_path}"]
    assert main([*words, "name=whole"]) == 0
    whole, cut = tmp_path / "stripes" / "whole", tmp_path / "stripes" / "cut"
    cut.mkdir()
    (cut / "checkpoints").mkdir()
    for name in ("config.yaml", "run.json", "split.csv", "audit.json", "images.csv"):
        if (whole / name).exists():
            shutil.copy(whole / name, cut / name)
    (cut / "checkpoints" / ".last.123.ckpt").write_bytes(b"half")  # of the kill
    capsys.readouterr()
    assert main(["train", f"resume={cut}"]) == 0
    assert "Nothing was saved yet: the training begins again." in capsys.readouterr().out
    assert (cut / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]


SCONTROL = """#!/bin/sh
echo "$@" >> "$SEEN"
exit $STATUS
"""


@pytest.fixture
def scontrol(tmp_path: Path) -> dict[str, str]:
    """A stand-in for SLURM, which writes down what it is asked for."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(SCONTROL)
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "SEEN": str(tmp_path / "seen"), "STATUS": "0", "SLURM_JOB_ID": "77"}


def test_a_job_is_put_back_on_its_signal_alone(
    scontrol: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", scontrol["PATH"])
    said: list[str] = []
    assert requeue(signal.SIGUSR1, scontrol, said.append)
    assert Path(scontrol["SEEN"]).read_text() == "requeue 77\n"
    assert said == ["Job 77 is in the queue again, and will go on by itself."]
    assert not requeue(signal.SIGTERM, scontrol, said.append)
    assert not requeue(signal.SIGUSR1, {}, said.append)
    assert not requeue(signal.SIGUSR1, {**scontrol, "SLURM_JOB_ID": "1; rm"}, said.append)
    assert Path(scontrol["SEEN"]).read_text() == "requeue 77\n"
    assert not requeue(signal.SIGUSR1, {**scontrol, "STATUS": "1"}, said.append)
    assert said[1:] == ["SLURM did not take job 77 back: status 1"]


def start(words: list[str], environ: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", *words],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


def test_a_job_that_slurm_stops_and_starts_again_goes_on(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], scontrol: dict[str, str]
) -> None:
    words = ["train", f"dataset.root={stripes}", *quick, f"runs={tmp_path}"]
    words += ["trainer.epochs=12", "scheduler=constant"]
    first = start(words, scontrol)
    wait_for(tmp_path / "latest" / "checkpoints" / "last.ckpt")
    first.send_signal(signal.SIGUSR1)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGUSR1, said
    assert "Job 77 is in the queue again" in said
    run = (tmp_path / "latest").resolve()
    step = load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    # Another job with the same settings begins a run of its own.
    assert json.loads((run / "run.json").read_text())["launcher"] == "slurm  77"
    second = start(words, {**scontrol, "SLURM_RESTART_COUNT": "1"})
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert f"Going on from last.ckpt: epoch {step // 4 + (step % 4 > 0)}" in said
    assert [path.name for path in (tmp_path / "stripes").iterdir()] == [run.name]
    rows = (run / "metrics.csv").read_text().split()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 13))


def test_torchrun_starts_the_processes_again_and_they_go_on(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    mine = [word for word in quick if word not in ("trainer=cpu", "trainer.epochs=3")]
    words = ["train", f"dataset.root={stripes}", *mine, f"runs={tmp_path}", "trainer.epochs=8"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "scheduler=constant"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node=2", "--max-restarts=2", "-m", "finetune"]
    process = subprocess.Popen(
        [*torchrun, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        wait_for(tmp_path / "latest" / "checkpoints" / "last.ckpt")
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "Going on from last.ckpt: epoch" in said
    (run,) = (tmp_path / "stripes").iterdir()
    rows = (run / "metrics.csv").read_text().split()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 9))
    assert (run / "model.ts").is_file()
