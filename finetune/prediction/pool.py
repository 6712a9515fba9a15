"""Several processes that each predict their share of the batches; the order is kept.

Batch ``i`` goes to process ``i % processes``, and its rows come back from there, so that they are
in order without being sorted. A process has at most ``ahead`` batches that are not answered yet.
Each message is a pipe's; there are no locks that a process could take with it when it dies.
"""

import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import multiprocessing

from finetune.errors import FinetuneError
from finetune.prediction.predict import Prediction

Predictor = Callable[[Iterable[Path]], Generator[Prediction, None, None]]
"""Paths, read lazily, to one prediction each, in order."""

_START_METHOD: Literal["spawn", "forkserver"] = "spawn"
"""Forked processes would hold the ends of each other's pipes, and could not use a GPU."""
_PATIENCE_S = 5
"""A process may have to finish a batch before it sees that it is alone."""


def predict_in_processes(
    paths: Iterable[Path],
    *,
    open_predictor: Callable[[int], Predictor],
    processes: int,
    batch_size: int,
    ahead: int,
    threads: int,
) -> Generator[Prediction, None, None]:
    """Predict files lazily with several processes, in the order given.

    The batches are those that one process would have; the numbers differ from its own only as far
    as the kernels' do with another number of threads.

    Args:
        paths: image files.
        open_predictor: called once in each process with its number, from 0; picklable, since the
            processes are spawned.
        processes: how many, >= 1.
        batch_size: that of the predictor, >= 1.
        ahead: batches that a process is given before it must answer; more than the predictor reads
            ahead.
        threads: of torch in each process.

    Raises:
        FinetuneError: while iterating, if a process dies.
        Exception: what a predictor raised.
    """
    workers: list[_Worker] = []
    remaining = iter(paths)
    batches = iter(lambda: list(islice(remaining, batch_size)), [])
    pending: deque[_Worker] = deque()
    try:
        for number, batch in enumerate(batches):
            if number < processes:  # no more than there are batches
                workers.append(_Worker(open_predictor, number, threads))
            worker = workers[number % processes]
            worker.send(batch)
            pending.append(worker)
            if len(pending) == processes * ahead:
                yield from pending.popleft().receive()
        for worker in workers:
            worker.send(None)
        while pending:
            yield from pending.popleft().receive()
    finally:
        for worker in workers:
            worker.leave()
        for worker in workers:
            worker.stop()


class _Worker:
    """The near end of a process."""

    def __init__(
        self, open_predictor: Callable[[int], Predictor], number: int, threads: int
    ) -> None:
        context: Any = multiprocessing.get_context(_START_METHOD)
        tasks, self._tasks = context.Pipe(duplex=False)
        self._results, results = context.Pipe(duplex=False)
        # No daemon: it has decoding processes of its own.
        self._process = context.Process(
            target=_work, args=(open_predictor, number, threads, tasks, results)
        )
        self._process.start()
        # With the last far end gone, the pipes tell that the process is.
        tasks.close()
        results.close()

    def send(self, batch: list[Path] | None) -> None:
        """Give it a batch, or None after the last."""
        try:
            self._tasks.send(batch)
        except OSError:
            # What it said before it ended is the reason.
            self._raise_end()

    def receive(self) -> list[Prediction]:
        """Wait for the rows of its next batch."""
        # Its decoding processes hold the pipe open for a while after it has died.
        while not self._results.poll(1):
            if not self._process.is_alive() and not self._results.poll():
                self._raise_death()
        try:
            rows = self._results.recv()
        except (EOFError, OSError):
            self._raise_death()
        if isinstance(rows, Exception):
            raise rows
        predictions: list[Prediction] = rows
        return predictions

    def leave(self) -> None:
        """Let it end by itself: without a far end, it has nothing to do and nobody to tell."""
        self._tasks.close()
        self._results.close()

    def stop(self) -> None:
        """Wait until it has ended, and end it if that takes long."""
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _raise_end(self) -> None:
        while True:
            self.receive()

    def _raise_death(self) -> None:
        self._process.join(_PATIENCE_S)
        code = self._process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
        raise FinetuneError(
            f"A process that runs the model died {how}. The usual reason is too little memory: use "
            "fewer processes or a smaller batch_size."
        )


def _work(
    open_predictor: Callable[[int], Predictor],
    number: int,
    threads: int,
    tasks: Connection,
    results: Connection,
) -> None:
    """Answer batches until the tasks end."""
    # Ctrl-C reaches every process of the terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    received: queue.SimpleQueue[list[Path] | None] = queue.SimpleQueue()
    # Reading in a thread keeps the pipe free, so that neither end ever waits for the other to
    # read while that one waits for it.
    threading.Thread(target=_read, args=(tasks, received), daemon=True).start()
    sizes: deque[int] = deque()
    try:
        predictions = open_predictor(number)(_each_path(received, sizes))
        for first in predictions:
            batch = [first, *islice(predictions, sizes.popleft() - 1)]
            results.send(batch)
    except BrokenPipeError:  # nobody waits any more
        return
    except Exception as error:  # noqa: BLE001 - the first process raises it
        _send_error(error, results)


def _read(tasks: Connection, received: "queue.SimpleQueue[list[Path] | None]") -> None:
    batch: list[Path] | None = []
    while batch is not None:
        try:
            batch = tasks.recv()
        except (EOFError, OSError):
            batch = None
        received.put(batch)


def _each_path(
    received: "queue.SimpleQueue[list[Path] | None]", sizes: "deque[int]"
) -> Iterator[Path]:
    while (batch := received.get()) is not None:
        sizes.append(len(batch))
        yield from batch


def _send_error(error: Exception, results: Connection) -> None:
    sent: Any = error
    if not isinstance(error, FinetuneError):
        # An error of a library may hold what cannot be sent.
        sent = RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    try:
        results.send(sent)
    except OSError:
        return
