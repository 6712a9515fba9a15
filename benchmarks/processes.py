"""One process, from its start to its end: seconds, peak memory, and when its table grew.

Imports nothing large: the peak memory of a process that is started counts from that of its parent.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Finished:
    """What became of a process.

    Attributes:
        status: 0 for success.
        seconds: from its start to its end.
        peak_mib: resident memory of the largest of it and the processes that it waited for.
        rows_seconds: when each row of the watched table was first seen, since the start.
    """

    status: int
    seconds: float
    peak_mib: float
    rows_seconds: list[float]


def run_process(
    command: Sequence[str | Path],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    count_rows: Callable[[], int] = lambda: 0,
) -> Finished:
    """Run a command to its end.

    Args:
        command: the program and its arguments.
        folder: where it runs.
        log: gets what it prints.
        environment: on top of this process's own.
        count_rows: of a table that it writes while it runs.
    """
    rows_seconds: list[float] = []
    with log.open("wb") as output:
        started, start = time.time(), time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, **environment, "BENCHMARK_STARTED": str(started)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                # Not `process.wait()`: only this tells the memory of this one process.
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                seconds = time.perf_counter() - start
                new = count_rows() - len(rows_seconds)
                rows_seconds += [seconds] * new
                if pid:
                    break
                time.sleep(POLL_SECONDS)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return Finished(process.returncode, seconds, usage.ru_maxrss / 1024, rows_seconds)
