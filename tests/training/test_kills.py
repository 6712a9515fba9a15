"""A process that is killed anywhere in a save leaves the old checkpoint or the whole new one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = '''
"""Kill a save before, within and after each call that changes the disk: script PATH."""
import io, os, pathlib, signal, sys
from pathlib import Path

import torch

from finetune.run import sweep_leftovers
from finetune.training.checkpoints import AtomicCheckpointIO, load_checkpoint

path = Path(sys.argv[1])
calls, kill_at = [], None


def happens(what):
    """Count, and die here if it is time."""
    calls.append(what)
    if len(calls) - 1 == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


class Raw(io.FileIO):
    """Without a buffer, so that each write is one of the system's."""

    def write(self, content):
        happens("before write")
        half = super().write(memoryview(content)[: len(content) // 2])
        happens("within write")
        count = super().write(memoryview(content)[half:])
        happens("after write")
        return half + count


def watched(name, function):
    def call(*arguments, **options):
        happens(f"before {name}")
        result = function(*arguments, **options)
        happens(f"after {name}")
        return result
    return call


def save(number):
    weights = {f"layer{i}": torch.full((500,), float(number)) for i in range(3)}
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights, "number": number}, path)


def attempt(number, position):
    """Save in another process, which is killed there; without a position it is not."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    global kill_at
    kill_at = position
    open_path = Path.open
    Path.open = lambda self, mode="r", *a, **k: (
        Raw(self, "w") if mode == "wb" else open_path(self, mode, *a, **k)
    )
    os.fsync, os.replace = watched("fsync", os.fsync), watched("rename", os.replace)
    os.rename = watched("rename", os.rename)
    pathlib.os.replace = os.replace
    save(number)
    (path.parent / "calls").write_text(chr(10).join(calls))
    os._exit(0)


save(0)
assert attempt(1, None) == 0
calls_file = path.parent / "calls"
names = calls_file.read_text().split(chr(10))
calls_file.unlink()
save(0)
old = new = swept = 0
number = 0
renamed = names.index("after rename")
for position, name in enumerate(names):
    status = attempt(number + 1, position)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (name, status)
    content = load_checkpoint(path)  # which checks its sum
    assert content["number"] == number + (position >= renamed), (name, content["number"])
    assert all((w == content["number"]).all() for w in content["state_dict"].values())
    swept += len(sweep_leftovers(path.parent))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    old, new = old + (content["number"] == number), new + (content["number"] > number)
    number = content["number"]
print(len(names), old, new, swept, *sorted({name.split()[1] for name in names}))
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_200_kills_lose_nothing(tmp_path):
    """On the same file system as the temporary folder, and on another one where there is one."""
    places = {"the same": (tmp_path / "run", tmp_path)}
    memory = Path("/dev/shm")
    kills = lost = 0
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as other:
        places["another"] = (tmp_path / "far", Path(other))
        for name, (folder, temporary) in places.items():
            folder.mkdir()
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, str(folder / "last.ckpt")],
                env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            count, old, new, swept = map(int, done.stdout.split()[:4])
            assert done.stdout.split()[4:] == ["fsync", "rename", "write"]
            assert (old > 90, new >= 2, swept >= old - 1) == (True, True, True), done.stdout
            assert old + new == count
            kills += count
            print(f"{name} file system: {count} kills, {old} old, {new} new, {swept} swept")
    print(f"{kills} kills, {lost} lost")
    assert kills >= 200
