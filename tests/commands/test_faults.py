"""Twelve faults, each with one clear outcome: docs/reliability.md has them as a table.

Every training here is real. What breaks, breaks after an epoch or in a step of it; then the status
and the sentence are looked at, what was saved before is whole, and the run goes on if it can.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import finetune.commands.live_curves as live_curves
from finetune.cli import main
from finetune.training.checkpoints import load_checkpoint
from finetune.training.module import FineTuning

FAULTS = 12
EPOCHS = 4


class Place:
    """A training in a folder of its own, in which something breaks."""

    def __init__(
        self, words: tuple[str, ...], runs: Path, patch: pytest.MonkeyPatch, capture: object
    ) -> None:
        self.words = ["train", "name=a", f"runs={runs}", *words, f"trainer.epochs={EPOCHS}"]
        self.run = runs / "stripes" / "a"
        self.last = self.run / "checkpoints" / "last.ckpt"
        self.patch = patch
        self.capture = capture

    def after_epoch(self, epoch: int, action: Callable[[], object]) -> None:
        """Do something when that many epochs have ended, before their checkpoint is written."""

        def draw(_run: object, epochs: object) -> None:
            if len(epochs.rows) == epoch:  # type: ignore[attr-defined]
                action()

        self.patch.setattr(live_curves, "draw_curves", draw)

    def train(self, *words: str) -> tuple[int, str]:
        """Train; return the status and what was said."""
        status = main([*self.words, *words])
        said = self.capture.readouterr()  # type: ignore[attr-defined]
        return status, said.err + said.out

    def goes_on(self, *words: str) -> str:
        """Go on, to the end; return what was said."""
        self.patch.undo()
        status = main(["train", f"resume={self.run}", *words])
        said = self.capture.readouterr()  # type: ignore[attr-defined]
        assert status == 0, said.err
        assert (self.run / "model.ts").is_file()
        rows = (self.run / "metrics.csv").read_text().split()[1:]
        assert [row.split(",")[0] for row in rows] == [str(epoch + 1) for epoch in range(EPOCHS)]
        return said.out  # type: ignore[no-any-return]

    def epoch(self) -> int:
        """Tell how many epochs the last checkpoint holds; it is whole."""
        return int(load_checkpoint(self.last)["epoch"]) + 1

    def no_leftovers(self) -> bool:
        """Tell whether nothing half-written lies about."""
        names = [path.name for path in self.last.parent.iterdir()]
        return all(not name.startswith(".") for name in names)


@pytest.fixture
def place(
    stripes: Path,
    tmp_path: Path,
    quick: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Place:
    return Place((f"dataset.root={stripes}", *quick), tmp_path, monkeypatch, capsys)


CAN_MOUNT = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


def mount(*words: str) -> bool:
    done = subprocess.run(["mount", *words], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MB, where one can be had."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not CAN_MOUNT or not mount("-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)):
        pytest.skip("no disk can be mounted by this user")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return


def test_01_run_disk_full(place: Place, disk: Path) -> None:
    place.words[2] = f"runs={disk}"
    place.run = disk / "stripes" / "a"
    place.last = place.run / "checkpoints" / "last.ckpt"
    place.after_epoch(2, lambda: fill(disk))
    status, said = place.train()
    assert status == 1
    assert re.search(r"TrainingError: .* could not be written: No space left on device; free", said)
    assert f"finetune train resume={place.run}" in said
    assert (place.epoch(), place.no_leftovers()) == (1, True)
    (disk / "filler").unlink()
    assert "Going on from last.ckpt: epoch 1, step 4." in place.goes_on()


def test_02_temporary_disk_full(place: Place, disk: Path) -> None:
    """Nothing of a training lies there, so there is nothing to lose."""
    fill(disk)
    place.patch.setenv("TMPDIR", str(disk))
    place.patch.setattr("tempfile.tempdir", None)
    status, said = place.train("dataset.workers=2")
    assert status == 0, said
    assert place.epoch() == EPOCHS


def test_03_read_only_folder(place: Place, disk: Path) -> None:
    """First its checkpoints alone, since a disk with an open file stays writable."""
    place.words[2] = f"runs={disk}"
    place.run = disk / "stripes" / "a"
    place.last = place.run / "checkpoints" / "last.ckpt"
    checkpoints = str(place.last.parent)

    def protect() -> None:
        assert mount("--bind", checkpoints, checkpoints)
        assert mount("-o", "remount,bind,ro", checkpoints)

    place.after_epoch(2, protect)
    status, said = place.train()
    assert status == 1
    assert re.search(r"could not be written: Read-only file system; make it writable", said)
    assert place.epoch() == 1
    subprocess.run(["umount", checkpoints], check=True)
    assert mount("-o", "remount,ro", str(disk))
    assert main(["train", f"resume={place.run}"]) == 2
    assert "cannot be written: Read-only file system" in place.capture.readouterr().err  # type: ignore[attr-defined]
    assert place.train("name=b")[0] == 2
    assert mount("-o", "remount,rw", str(disk))
    place.goes_on()


def stop(number: int = signal.SIGTERM) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def test_04_damaged_last_checkpoint(place: Place) -> None:
    place.after_epoch(3, stop())
    assert place.train()[0] == 128 + signal.SIGTERM
    assert place.epoch() == 3
    content = bytearray(place.last.read_bytes())
    content[len(content) // 2] ^= 1
    place.last.write_bytes(content)
    said = place.goes_on()
    assert "last.ckpt is not a checkpoint of finetune: its checksum is not that of its" in said
    assert "Going on from best.ckpt: epoch" in said
    record = json.loads((place.run / "run.json").read_text())
    assert "Going on from best.ckpt" in " ".join(record["resumed"][0]["notes"])


def test_05_flipped_byte_in_weights(
    trained: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    weights = run / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    for words in (["evaluate", f"run={run}"], ["predict", f"run={run}", f"input={stripes}"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("ModelError: ")
        assert "model.safetensors" in said
        assert said.count("\n") == 1


def children_of(process: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(process)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def kill_a_worker() -> None:
    """Kill one of the processes that decode images, as the system does without memory."""
    workers = [
        child
        for child in children_of(os.getpid())
        if b"pt_data_worker" in Path(f"/proc/{child}/comm").read_bytes()
    ]
    os.kill(workers[0], signal.SIGKILL)
    time.sleep(0.5)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_06_worker_killed(place: Place) -> None:
    place.after_epoch(2, kill_a_worker)
    status, said = place.train("dataset.workers=2")
    assert status == 1
    assert "TrainingError: A process that decodes images was killed (Killed)" in said
    assert "dataset.workers=1, or 0" in said
    assert place.epoch() >= 1
    assert "Going on from last.ckpt: epoch" in place.goes_on("dataset.workers=0")


def test_07_rank_killed(place: Place) -> None:
    """The others end within a minute, and say so."""
    words = [word for word in place.words if word != "trainer=cpu"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "scheduler=constant"]
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *words, "trainer.epochs=500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not place.last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (rank,) = [
        child
        for child in children_of(process.pid)
        if b"name=a" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    began = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    print(f"the other process ended after {time.monotonic() - began:.1f} s")
    assert process.returncode == 1, said
    assert "TrainingError: One of the 2 processes that train together has ended" in said
    assert f"finetune train resume={place.run}" in said
    assert place.epoch() >= 1


def test_08_loss_not_finite(place: Place) -> None:
    step = FineTuning.training_step

    def broken(self: FineTuning, batch: object, index: int) -> torch.Tensor:
        if self.global_step == 9:
            with torch.no_grad():
                next(self.classifier.head.parameters()).fill_(float("nan"))
        return step(self, batch, index)  # type: ignore[arg-type]

    place.patch.setattr(FineTuning, "training_step", broken)
    status, said = place.train()
    assert status == 1
    assert "TrainingError: The training loss is not finite in epoch 3, step 10; the last" in said
    assert "Try a smaller optimizer.lr" in said
    content = load_checkpoint(place.last)
    assert content["epoch"] == 1
    assert all(v.isfinite().all() for v in content["state_dict"].values())
    place.goes_on()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_09_out_of_memory(place: Place) -> None:
    allowed = 12 << 30

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))

    words = [word for word in place.words if not word.startswith("model.image_size_px")]
    words += ["model.image_size_px=2048", "trainer.batch_size=64"]
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *words],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"TrainingError: There is too little memory: .*can't allocate", done.stderr)
    assert "Try a smaller trainer.batch_size" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_10_image_removed_or_changed(
    stripes: Path,
    tmp_path: Path,
    quick: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    root = tmp_path / "stripes"
    shutil.copytree(stripes, root)
    place = Place((f"dataset.root={root}", *quick), tmp_path, monkeypatch, capsys)
    images = sorted(root.rglob("*.png"))
    content = {path: path.read_bytes() for path in images}

    def break_them() -> None:
        for path in images:
            path.unlink()
            if how == "changed":
                path.write_bytes(content[images[0]][:-1] + b"x")

    place.after_epoch(2, break_them)
    status, said = place.train()
    assert status == 2
    assert "DataError: " in said
    assert ("cannot be read any more" if how == "removed" else "has changed since") in said
    assert place.epoch() == 2
    assert main(["train", f"resume={place.run}"]) == 2
    assert ("are gone" if how == "removed" else "have changed") in capsys.readouterr().err
    for path in images:
        path.write_bytes(content[path])
    place.goes_on()


def test_11_clock_set_back(place: Place) -> None:
    """What is newest is told by the step that a checkpoint holds, not by its time."""
    place.after_epoch(2, stop())
    assert place.train()[0] == 128 + signal.SIGTERM
    yesterday = time.time() - 86_400
    os.utime(place.last, (yesterday, yesterday))
    real = time.time
    place.patch.undo()
    place.patch.setattr(time, "time", lambda: real() - 86_400)
    status = main(["train", f"resume={place.run}"])
    said = place.capture.readouterr()  # type: ignore[attr-defined]
    assert status == 0, said.err
    assert "Going on from last.ckpt: epoch 2, step 8." in said.out


HOLDER = """
import sys, time
from pathlib import Path
from finetune.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_12_second_process_in_the_same_run(place: Place) -> None:
    place.after_epoch(2, stop())
    assert place.train()[0] == 128 + signal.SIGTERM
    before = {path: path.read_bytes() for path in place.run.rglob("*") if path.is_file()}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place.run)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before[place.run / ".lock"] = (place.run / ".lock").read_bytes()
        assert main(["train", f"resume={place.run}"]) == 2
        said = place.capture.readouterr().err  # type: ignore[attr-defined]
        assert f"RunError: {place.run} is in use by process {holder.pid} on" in said
        assert before == {p: p.read_bytes() for p in place.run.rglob("*") if p.is_file()}
        holder.kill()
    place.goes_on()


def test_the_table_of_the_docs_names_each_of_them() -> None:
    docs = Path(__file__).parents[2] / "docs" / "reliability.md"
    named = re.findall(r"-k test_(\d\d)_\w+", docs.read_text(encoding="utf-8"))
    here = [name[5:7] for name in globals() if re.match(r"test_\d\d_", name)]
    assert sorted(named) == sorted(here)
    assert len(here) == FAULTS
    print(f"{len(here)} faults, {len(named)} rows")
