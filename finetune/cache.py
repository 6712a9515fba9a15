"""What is kept between runs, and where: nothing that cannot be computed again.

<user's cache folder>/finetune/
├── audits/       what is known of each image file: size and time, digest, fingerprint, trouble
├── downloads/    what ``finetune data`` fetches, until the images are complete
├── features/     what a frozen backbone says of each image
└── images/       decoded, reduced images (``dataset.cache=disk``)
"""

import os
from pathlib import Path

import platformdirs

from finetune.errors import RunError


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
    """Make one of the cache's folders, for this user alone.

    Raises:
        RunError: it cannot be made, or belongs to another user, who could put anything there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise RunError(
            f"the cache {folder} cannot be made: {error.strerror}. Name another folder: "
            "cache_folder=FOLDER."
        ) from None
    if hasattr(os, "getuid") and owner != os.getuid():
        raise RunError(
            f"the cache {folder} belongs to another user; expected one of your own. Name another "
            "folder: cache_folder=FOLDER."
        )
    return folder
