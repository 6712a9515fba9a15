import signal
import subprocess
import sys

import pytest

from finetune.training.processes import describe_end

# A first process whose main thread is stuck, as in a collective operation, when another dies.
STUCK = """
import subprocess, sys, threading, time
from types import SimpleNamespace
from finetune.training import processes
processes.PERIOD_SECONDS, processes.GRACE_SECONDS = 0.05, float(sys.argv[1])
ends = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
stays = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(stays.pid, flush=True)
launcher = SimpleNamespace(procs=[stays, ends], kill=lambda number: stays.send_signal(number))
over = threading.Event()
threading.Thread(target=processes._watch_others, args=(launcher, over), daemon=True).start()
time.sleep(float(sys.argv[3]))
over.set()
stays.kill()
"""


def run_stuck(grace, code, seconds):
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(grace), code, str(seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, int(done.stdout)


def is_running(pid):
    """Tell whether it still does anything; who ended may wait for somebody to notice."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed (SIGKILL)"),
        ("raise SystemExit(3)", "ended with status 3"),
    ],
)
def test_a_process_that_waits_for_a_dead_one_ends_with_a_word(code, how):
    done, other = run_stuck(0.1, code, 50)
    assert done.returncode == 1
    assert done.stderr.startswith(f"TrainingError: process 3 of 3 {how}, so the others end as well")
    assert not is_running(other)


def test_it_is_left_alone_while_it_may_notice_by_itself():
    done, _ = run_stuck(30, "raise SystemExit(3)", 2)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_ended_well_ends_nobody():
    done, _ = run_stuck(0, "pass", 2)
    assert (done.returncode, done.stderr) == (0, "")


ORPHAN = """
import os, sys, threading, time
from finetune.training import processes
processes.PERIOD_SECONDS = 0.05
if os.fork() == 0:
    args = (os.getppid(), threading.Event())
    threading.Thread(target=processes._watch_first, args=args, daemon=True).start()
    print(os.getpid(), flush=True)
    time.sleep(100)
sys.stdin.read()
"""


def test_a_process_ends_soon_after_the_first():
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        orphan = int(first.stdout.readline())
        assert is_running(orphan)
        first.kill()
        assert first.stdout.read() == ""  # until the orphan's end of the pipe is closed as well
    assert not is_running(orphan)


def test_an_end_is_described():
    assert describe_end(-signal.SIGTERM) == "was killed (SIGTERM)"
    assert describe_end(2) == "ended with status 2"
