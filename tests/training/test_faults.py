import errno
import os

import pytest
import torch

from finetune.errors import ConfigError, DataError, TrainingError
from finetune.training.faults import explain, explain_disk

WRAPPED = """Caught DataError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "loop.py", line 1, in fetch
finetune.errors.DataError: a/b.png cannot be read any more: gone. Put it back."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "The GPU's memory is too small: CUDA",
        ),
        (MemoryError(), "There is too little memory: the system gives no more. Try a smaller"),
        (
            RuntimeError("[enforce fail at x] . DefaultCPUAllocator: can't allocate memory: you"),
            "There is too little memory: can't allocate memory: you. Try a smaller",
        ),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            "A process that decodes images was killed (Killed); the system",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"),
            "A process that decodes images has ended; the system",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible"
            ),
            "The memory that processes share (/dev/shm) is full. Make it larger",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/last.ckpt"),
            "runs/a/last.ckpt could not be written: No space left on device; free some space",
        ),
        (
            OSError("Caught OSError in worker.\n[Errno 28] No space left on device: '/tmp/x'"),
            "/tmp/x could not be written: No space left on device; free some space there.",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS)),
            "A file could not be written: Read-only file system; make it writable.",
        ),
    ],
)
def test_what_broke_and_what_to_do(error, sentence):
    explained = explain(error, num_processes=1)
    assert isinstance(explained, TrainingError)
    assert str(explained).startswith(sentence)
    assert "\n" not in str(explained)


@pytest.mark.parametrize(
    "text",
    [
        "[/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:4492: Connection reset by peer",
        "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv",
        "NCCL communicator was aborted on rank 0.",
    ],
)
def test_a_process_that_is_gone_is_missed_only_where_there_were_several(text):
    explained = explain(RuntimeError(text), num_processes=3)
    assert str(explained).startswith("One of the 3 processes that train together has ended")
    assert explain(RuntimeError(text), num_processes=1) is None


def test_an_error_for_the_user_stays_one():
    for error in (ConfigError("a: b"), TrainingError("c"), DataError("d")):
        assert explain(error, num_processes=1) is error


def test_a_workers_error_is_taken_out_of_its_traceback():
    explained = explain(DataError(WRAPPED), num_processes=1)
    assert isinstance(explained, DataError)
    assert str(explained) == "a/b.png cannot be read any more: gone. Put it back."


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("shape"), ValueError("x")])
def test_a_programmers_mistake_is_not_explained_away(error):
    assert explain(error, num_processes=4) is None


@pytest.mark.parametrize("error", [OSError("text"), OSError(errno.ENOENT, "No such file", "a")])
def test_the_disk_is_blamed_only_for_what_it_does(error):
    assert explain_disk(error) is None
