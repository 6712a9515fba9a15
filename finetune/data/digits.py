"""A small real data set that needs no network: handwritten digits that come with scikit-learn."""

import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.errors import DataError

NUM_IMAGES = 1797


def write_digits(root: Path) -> None:
    """Write 1,797 scans of 8 x 8 pixels as ``root/<0 to 9>/<number>.png``, unless they are there.

    They appear all at once: they are written beside ``root`` and then renamed, so a killed
    process leaves no half of them, and of two processes one wins. Parent folders are made.

    Raises:
        DataError: ``root`` holds something else, or cannot be written.

    Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI, of which
    scikit-learn carries the test set.
    """
    try:
        got = _describe_content(root)
        if got is not None:
            # Asked last: another process may just have put it there.
            if _is_complete(root):
                return
            raise DataError(
                f"{root} is not the digits data set ({got}); expected an empty or missing folder. "
                "Name another folder, or remove this one."
            )
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{root.name}-", dir=root.parent, ignore_cleanup_errors=True
        ) as folder:
            complete = Path(folder) / root.name
            _write_images(complete)
            _publish(complete, root)
    except OSError as error:
        raise DataError(f"{root} cannot be written: {error.strerror}.") from error


def _write_images(root: Path) -> None:
    # Importing scikit-learn takes longer than everything else here.
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    # Ink is 16 and paper 0; a half is rounded to the even number.
    pixels = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for digit in range(10):
        (root / str(digit)).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(root / str(label) / f"{index:04}.png")


def _publish(complete: Path, root: Path) -> None:
    try:
        # Replaces an empty folder, and fails on any other.
        complete.rename(root)
    except OSError:
        if not _is_complete(root):
            raise


def _is_complete(root: Path) -> bool:
    return root.is_dir() and sum(1 for _ in root.glob("[0-9]/*.png")) == NUM_IMAGES


def _describe_content(root: Path) -> str | None:
    """Say what stands in the way at ``root``; None if there is nothing, or an empty folder."""
    if root.is_dir():
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries)
        return f"it holds {', '.join(names[:5])}" if names else None
    return "it is a file" if root.exists() or root.is_symlink() else None
