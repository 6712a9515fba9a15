"""Processes that train together on one machine end together, and say why.

Lightning starts the others from the first. If one of them dies, a collective operation may wait
for it for minutes; and Lightning's own observer kills the first process without a word.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import distributed

PERIOD_SECONDS = 0.5
GRACE_SECONDS = 10
"""In which the operation that waits for the other process may fail by itself, with its reason."""


@contextmanager
def watched_processes(trainer: Trainer) -> Iterator[None]:
    """Within the block, end this process soon after one of the others that Lightning started.

    In one of those, after the first process. Where something else starts them (torchrun, SLURM)
    that watches them, and where there is one process there is nothing to watch.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        yield
        return
    is_over = threading.Event()
    if trainer.local_rank == 0:
        arguments: tuple[Any, ...] = (launcher, is_over)
        thread = threading.Thread(target=_watch_others, args=arguments, daemon=True)
    else:
        thread = threading.Thread(target=_watch_first, args=(os.getppid(), is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()


def join_after_restart(trainer: Trainer, environ: Mapping[str, str]) -> None:
    """Join the processes that torchrun has started again under a name of this attempt.

    They keep the store of the attempt before, and torch (2.10 to 2.15) finds in it the addresses
    of the dead: one restart in four hung or failed here. On one machine all processes count their
    attempts alike; on several, torch's own way is taken.
    """
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    strategy = trainer.strategy
    if attempt == "0" or environ.get("GROUP_WORLD_SIZE") != "1" or trainer.world_size == 1:
        return
    if not isinstance(strategy, DDPStrategy | FSDPStrategy) or distributed.is_initialized():
        return
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        environ["MASTER_ADDR"],
        int(environ["MASTER_PORT"]),
        int(environ["WORLD_SIZE"]),
        is_master=environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and environ["RANK"] == "0",
    )
    if strategy.root_device.type == "cuda":
        torch.cuda.set_device(strategy.root_device)
    distributed.init_process_group(
        strategy.process_group_backend or strategy._get_process_group_backend(),
        store=distributed.PrefixStore(f"finetune attempt {attempt}", store),  # type: ignore[attr-defined]
        rank=int(environ["RANK"]),
        world_size=int(environ["WORLD_SIZE"]),
    )


def describe_end(return_code: int) -> str:
    """Say how a process ended: ``was killed (SIGKILL)``, ``ended with status 1``."""
    if return_code < 0:
        return f"was killed ({signal.Signals(-return_code).name})"
    return f"ended with status {return_code}"


def _watch_others(launcher: _SubprocessScriptLauncher, is_over: threading.Event) -> None:
    while not is_over.wait(PERIOD_SECONDS):
        _retire_observer()
        dead = _first_dead(launcher.procs)
        if dead is None:
            continue
        rank, code = dead
        if is_over.wait(GRACE_SECONDS):  # this process has noticed by itself
            return
        sys.stderr.write(
            f"TrainingError: process {rank + 1} of {len(launcher.procs) + 1} "
            f"{describe_end(code)}, so the others end as well. What was saved before is kept.\n"
        )
        sys.stderr.flush()
        launcher.kill(signal.SIGKILL)
        os._exit(1)


def _watch_first(first: int, is_over: threading.Event) -> None:
    while not is_over.wait(PERIOD_SECONDS):
        if os.getppid() != first:
            os._exit(1)


def _first_dead(processes: Sequence["subprocess.Popen[bytes]"]) -> tuple[int, int] | None:
    for rank, process in enumerate(processes, start=1):
        code = process.poll()
        if code:
            return rank, code
    return None


def _retire_observer() -> None:
    """Give Lightning's observer nothing to observe: it would kill without a word."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]
