"""A data set that appears in its folder all at once, or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from finetune.errors import DataError


def place_folder(
    root: Path, write: Callable[[Path], None], *, is_complete: Callable[[Path], bool], name: str
) -> None:
    """Have ``write`` fill a folder beside ``root`` and rename it, unless ``root`` is complete.

    A killed process leaves no half of it, and of two processes one wins. Parent folders are made.

    Args:
        root: where the data set goes; a link to a folder is followed.
        write: makes and fills the folder that it is given.
        is_complete: whether a folder holds the data set.
        name: of the data set, for messages.

    Raises:
        DataError: ``root`` holds something else, or cannot be written.
    """
    if is_in_place(root, is_complete=is_complete, name=name):
        return
    target = Path(os.path.realpath(root))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
        ) as folder:
            complete = Path(folder) / target.name
            write(complete)
            _publish(complete, target, is_complete)
    except OSError as error:
        raise DataError(f"{root} cannot be written: {error.strerror}.") from error


def is_in_place(root: Path, *, is_complete: Callable[[Path], bool], name: str) -> bool:
    """Find out whether ``root`` holds the data set; False for nothing, or an empty folder.

    Raises:
        DataError: it holds something else, or cannot be read.
    """
    try:
        got = _describe_content(root)
        # Asked last: another process may just have put it there.
        if got is None or is_complete(root):
            return got is not None
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from error
    raise DataError(
        f"{root} is not the {name} data set ({got}); expected an empty or missing folder. "
        "Name another folder."
    )


def _publish(complete: Path, target: Path, is_complete: Callable[[Path], bool]) -> None:
    try:
        # Replaces an empty folder, and fails on any other.
        complete.rename(target)
    except OSError:
        if not is_complete(target):
            raise


def _describe_content(root: Path) -> str | None:
    """Say what stands in the way at ``root``; None if there is nothing, or an empty folder."""
    if root.is_dir():
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries)
        return f"it holds {', '.join(names[:5])}" if names else None
    return "it is a file" if root.exists() or root.is_symlink() else None
