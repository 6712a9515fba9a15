"""The lock of a folder in which only one process may write."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from finetune.errors import RunError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` during the block; it ends with the process, however that ends.

    A record lock (POSIX ``fcntl``), which forked workers do not inherit and network disks know.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    path = folder / NAME
    try:
        # Not through a link, which may lead to a file that is somebody's.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        file = os.fdopen(descriptor, "r+", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}.") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except OSError:
            is_ours = False
        if not is_ours:  # or another process has just removed it, and a third may hold a new one
            raise RunError(
                f"{folder} is in use by {_holder(path)}; two would mix their files. Wait until "
                "that has ended, or stop it."
            )
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"process": os.getpid(), "machine": platform.node(), "since": now}
        file.write(json.dumps(holder) + "\n")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # on a disk that is read-only by now it stays, unlocked
                path.unlink()


def _holder(path: Path) -> str:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(known['process'])} on {known['machine']}, since {known['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
