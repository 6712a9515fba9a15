"""What stands in a folder: images, folders, and what is left out, with the reason."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import DataError, did_you_mean

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
        *(".dcm", ".dicom"),
    }
)
SUFFIX_LIST = ", ".join(sorted(IMAGE_SUFFIXES))
_LEFT_BY_PROGRAMS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was left out, and why. ``path`` is POSIX, relative to the root."""

    path: str
    reason: str


def list_folder(root: Path, folder: str, skipped: list[Skipped]) -> tuple[list[str], list[str]]:
    """List one folder: its folders and its image files, as POSIX paths relative to ``root``.

    Both are sorted, and so is what is added to ``skipped``.

    Raises:
        DataError: the folder cannot be listed.
    """
    folders, images = [], []
    try:
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if is_left_over(entry.name):
                    continue
                if entry.is_symlink():
                    skipped.append(Skipped(path, "symbolic link, not followed"))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif not entry.is_file(follow_symlinks=False):
                    skipped.append(Skipped(path, "neither a file nor a folder"))
                elif has_image_suffix(entry.name):
                    images.append(path)
                else:
                    skipped.append(Skipped(path, "no image suffix"))
    except OSError as error:
        raise DataError(f"{root / folder} cannot be listed: {error.strerror}.") from error
    return folders, images


def walk_images(root: Path, folder: str, skipped: list[Skipped]) -> Iterator[str]:
    """Yield the image files at any depth below ``folder``, relative to ``root``."""
    pending = [folder]
    while pending:
        folders, images = list_folder(root, pending.pop(), skipped)
        pending += folders
        yield from images


def has_image_suffix(name: str) -> bool:
    """Say whether a file's name is an image's; upper and lower case are the same."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (twice as fast)


def is_left_over(name: str) -> bool:
    """Say whether a name is hidden, or what macOS, Windows or Jupyter leave behind."""
    return name.startswith(".") or name.lower() in _LEFT_BY_PROGRAMS


def nearest_sibling(path: Path) -> str:
    """Name what stands beside a path that does not exist and is called like it, or return ""."""
    try:
        return did_you_mean(path.name, os.listdir(path.parent))  # noqa: PTH208 (names, no paths)
    except OSError:
        return ""
