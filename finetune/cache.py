"""What is kept between runs, and where: nothing that cannot be computed again.

Only what this user wrote, and nobody else can have changed, is believed.

<user's cache folder>/finetune/
├── audits/       what is known of each image file: size and time, digest, fingerprint, trouble
├── downloads/    what ``finetune data`` fetches, until the images are complete
├── features/     what a frozen backbone says of each image
└── images/       decoded, reduced images (``dataset.cache=disk``)
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

import platformdirs

from finetune.errors import RunError

_OF_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class CacheDirectory:
    """The names of the cache's folders. ``CacheDirectory(path)`` looks at nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.audits = path / "audits"
        self.downloads = path / "downloads"
        self.features = path / "features"
        self.images = path / "images"


def find_cache(folder: Path | None) -> CacheDirectory:
    """Name the cache: the folder given, or ``finetune`` in the user's own (XDG's on Linux)."""
    return CacheDirectory(folder or platformdirs.user_cache_path("finetune", appauthor=False))


def open_cache_folder(folder: Path) -> Path:
    """Make one of the cache's folders, for this user alone; close one that others could write in.

    A link is followed where this user made it.

    Raises:
        RunError: it cannot be made or closed, or belongs to another user, who could put anything
            there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owners = {folder.lstat().st_uid, folder.stat().st_uid}
        is_mine = not hasattr(os, "getuid") or owners == {os.getuid()}
        is_open = is_mine and not _close(folder)
    except OSError as error:
        raise RunError(
            f"the cache {folder} cannot be made: {error.strerror}. Name another folder: "
            "cache_folder=FOLDER."
        ) from None
    if not is_mine:
        raise RunError(
            f"the cache {folder} belongs to another user; expected one of your own. Name another "
            "folder: cache_folder=FOLDER."
        )
    if is_open:
        raise RunError(
            f"others can write in the cache {folder}, and its disk keeps no permissions; expected "
            "a folder of your own alone. Name another: cache_folder=FOLDER."
        )
    return folder


def is_own_file(path: Path) -> bool:
    """Tell whether a file of the cache can be believed: this user's own, and no link.

    What others put into a folder while it was open to them is theirs, or a link.

    Raises:
        OSError: there is no such file, or it cannot be looked at.
    """
    return is_own(path.lstat())


def is_own(status: os.stat_result) -> bool:
    """Tell the same of a file that is open."""
    return stat.S_ISREG(status.st_mode) and (
        not hasattr(os, "getuid") or status.st_uid == os.getuid()
    )


def _close(folder: Path) -> bool:
    """Take from others the right to write in a folder; say whether that worked."""
    mode = folder.stat().st_mode
    if hasattr(os, "getuid") and mode & _OF_OTHERS:
        with suppress(PermissionError):  # such as on a disk of Windows, which keeps no modes
            folder.chmod(stat.S_IMODE(mode) & ~_OF_OTHERS)
        return not folder.stat().st_mode & _OF_OTHERS
    return True
