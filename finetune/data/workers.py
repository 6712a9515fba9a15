"""What a decoding process is told before its first image."""

import os
import signal
import threading

from finetune.data.augment import use_one_thread


def start_worker(worker: int) -> None:
    """Compute on one thread, and leave signals to the process that trains.

    Ctrl-C and schedulers signal the whole group; a worker that died of it would end the training
    in the middle of a step. It ends with the process that it works for, and when that says so.

    Args:
        worker: its number, as ``DataLoader`` gives it to ``worker_init_fn``.
    """
    use_one_thread(worker)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    """Take SIGTERM from the parent alone; a handler would not know who sent it."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        continue
    os._exit(0)
