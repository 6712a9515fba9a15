import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import RunError
from finetune.lock import NAME, locked

HOLD = """
import os, sys, time
from pathlib import Path
from finetune.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "forks" else 1
    if child == 0:
        time.sleep(100)
    print(child, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lock; end it, and what it forked, afterwards."""
    started, forked = [], []

    def start(how="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), how], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        child = int(process.stdout.readline())
        forked.extend([child] if how == "forks" else [])
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    for child in forked:
        os.kill(child, signal.SIGKILL)


def test_the_lock_says_who_holds_it_and_leaves_nothing(tmp_path):
    with locked(tmp_path):
        holder = json.loads((tmp_path / NAME).read_text())
        assert holder["process"] == os.getpid()
        assert set(holder) == {"process", "machine", "since"}
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_another_process_is_named(tmp_path, hold):
    process = hold()
    with pytest.raises(RunError, match=f"is in use by process {process.pid} on .*, since 20"):
        locked(tmp_path).__enter__()


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_the_lock_ends_with_its_process_not_with_what_that_forked(tmp_path, hold, how):
    process = hold(how)
    process.kill()
    process.wait()
    assert (tmp_path / NAME).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"process": "x"}'])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, hold, content):
    hold()
    (tmp_path / NAME).write_text(content)
    with pytest.raises(RunError, match="is in use by another process; two would"):
        locked(tmp_path).__enter__()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot be written: No such file"):
        locked(tmp_path / "gone").__enter__()
    assert not Path(tmp_path / "gone").exists()
