"""Signals that ask a training to stop, and what they ask for at the next safe point.

Between two steps a training is safe to stop: what is saved there goes on as if nothing had
happened. So within the steps a signal is only noted; anywhere else it stops at once. A second
signal has the system's own effect, which is to end the process there and then.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune.errors import Stopped

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)


class StopRequest:
    """What waits for the next safe point: a save, or the end.

    With several processes, ``wants_stop`` and ``wants_save`` are each one's own wish;
    ``agrees_to_stop`` and ``agrees_to_save`` are what all have agreed on, in the same step.

    Args:
        save_every_minutes: time between two saves within an epoch; None for none.
    """

    def __init__(self, save_every_minutes: float | None = None) -> None:
        self.signum: int | None = None
        self.agrees_to_stop = False
        self.agrees_to_save = False
        self.save_every_minutes = save_every_minutes
        self._saved_at = time.monotonic()
        self._is_waiting = False
        self._heard: list[int] = []
        self._process = os.getpid()

    @property
    def wants_stop(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    @property
    def wants_save(self) -> bool:
        """Whether the last save was long ago."""
        every = self.save_every_minutes
        return every is not None and time.monotonic() - self._saved_at >= 60 * every

    def agree(self, *, to_stop: bool, to_save: bool) -> None:
        """Take what all processes together want."""
        self.agrees_to_stop, self.agrees_to_save = to_stop, to_save

    def saved(self) -> None:
        """Begin to count anew."""
        self._saved_at = time.monotonic()
        self.agrees_to_save = False

    def stop(self) -> None:
        """End here.

        Raises:
            Stopped: always; in a process that only follows another, with SIGTERM's number.
        """
        raise Stopped(self.signum or signal.SIGTERM)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals within the block; one that is ignored already (``nohup``) stays so.

        Raises:
            Stopped: one came where nothing needs to be saved first.
        """
        if threading.current_thread() is not threading.main_thread():  # Python's own condition
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        outer = self._heard
        self._heard = [n for n, handler in before.items() if handler is not signal.SIG_IGN]
        self.listen_again()
        try:
            yield
        finally:
            for number in self._heard:
                signal.signal(number, before[number] or signal.SIG_DFL)
            self._heard = outer

    def listen_again(self) -> None:
        """Take the signals back from a library that has put itself in front."""
        for number in [] if self.wants_stop else self._heard:
            signal.signal(number, self._hear)

    @contextmanager
    def until_safe(self) -> Iterator[None]:
        """Only note a signal within the block, which looks for it by itself."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:  # a forked worker, whose parent hears it too
            return
        self.signum = number
        for each in self._heard:
            signal.signal(each, signal.SIG_DFL)
        if not self._is_waiting:
            raise Stopped(number)
        # Not through the console, which may be in the middle of a line. The cursor comes back in
        # case that the second signal ends everything.
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        name = signal.Signals(number).name
        text = f"\n{cursor}{name}: saving after this step; once more stops at once.\n"
        os.write(2, text.encode())
