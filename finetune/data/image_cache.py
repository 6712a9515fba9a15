"""Decoded, reduced images, kept for the next epochs: in memory, or on disk for the next runs too.

Whoever decodes an image first stores it, so that the first epoch fills the cache and no image is
decoded twice.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image

from finetune.cache import is_own, open_cache_folder
from finetune.data.image_store import KEY_BYTES, ImageStore, Pixels, initialise, is_valid, locked
from finetune.errors import ConfigError, RunError

SUFFIX = ".bin"

# Raise it when `decode_image` or `reduce_image` gives other pixels than before.
_PIXELS_VERSION = 1

_SLOTS_PER_IMAGE = 3  # of a new file
_MIN_SLOTS_PER_IMAGE = 1.5  # of a file that was made for fewer images


@dataclass(frozen=True, slots=True)
class Stored:
    """What a cache holds of the images that it was opened for.

    Attributes:
        images: how many, those of equal content counted once.
        bytes: of their pixels.
        max_bytes: the most that the whole cache may hold.
    """

    images: int
    bytes: int
    max_bytes: int


class ImageCache:
    """Images by index. Made by `open_image_cache`; for one thread of each process.

    Args:
        store: what holds them by key.
        keys: the keys of all images, joined.
    """

    def __init__(self, store: ImageStore, keys: bytes) -> None:
        self.store = store
        self.keys = keys

    def get(self, index: int) -> Pixels | None:
        """Return a copy of an image ``[h, w, 3]``, or None where it is not stored, or damaged."""
        return self.store.get(self._key(index))

    def put(self, index: int, image: Pixels) -> bool:
        """Store an image ``[h, w, 3]``; False where there is no room for it."""
        return self.store.put(self._key(index), image)

    def describe(self) -> Stored:
        """Count what is stored of these images, by any process."""
        sizes = self.store.sizes(self.keys)
        return Stored(len(sizes), int(sizes.sum()), self.store.max_bytes)

    def _key(self, index: int) -> bytes:
        if not 0 <= index < len(self.keys) // KEY_BYTES:
            raise IndexError(f"got image {index} of {len(self.keys) // KEY_BYTES}")
        return self.keys[index * KEY_BYTES : (index + 1) * KEY_BYTES]


def reduce_image(image: Pixels, side_px: int) -> Pixels:
    """Make the shorter side ``side_px``, antialiased; a smaller image stays as it is.

    The filter is bicubic. Photographs reduced to 448 px and then to a network's 224 px differ from
    those reduced once by 0.7 of 255 on average (Lanczos 0.6, bilinear 0.8, box 1.6), and Lanczos
    takes a third more time.

    Args:
        image: ``[H, W, 3]``.
        side_px: >= 1.

    Returns:
        ``[h, w, 3]`` of the same proportions, min(h, w) = min(H, W, ``side_px``).
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= side_px:
        return image
    size = (width * side_px // shorter, height * side_px // shorter)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def open_image_cache(
    kind: Literal["ram", "disk"],
    folder: Path | None,
    *,
    name: str,
    keys: Sequence[bytes],
    max_bytes: int,
) -> ImageCache:
    """Open a cache: an empty one in memory, or the one on disk as other runs left it.

    In memory it is shared with the workers that this process starts, and with nobody else; on
    disk with every process of this user, at the same time and later.

    Args:
        kind: where it lives.
        folder: for ``disk``; made where it is not there.
        name: any text that says which data set it is, and what was done to the pixels after
            decoding. Another name, decode policy or Pillow is another file.
        keys: of each image, at least 16 bytes of a hash of its file's content; an image whose
            content changes is not found, and images of equal content are stored once.
        max_bytes: the file does not grow beyond it, nor beyond half of the machine's memory, or
            by more than half of what is free on the disk.

    Raises:
        RunError: the file cannot be opened, or is not this user's own.
        ConfigError: the system is Windows.
    """
    if not hasattr(os, "pwrite"):
        raise ConfigError(f"dataset.cache: got {kind}, expected none on Windows.")
    joined = b"".join(key[:KEY_BYTES] for key in keys)
    if len(joined) != KEY_BYTES * len(keys):
        raise ValueError(f"got a key of less than {KEY_BYTES} bytes")
    if kind == "ram":
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        fd = _open_memory()
        initialise(fd, _slots_for(joined, _SLOTS_PER_IMAGE))
        return ImageCache(ImageStore(fd, min(max_bytes, half)), joined)
    if folder is None:
        raise ValueError("a cache on disk needs a folder")
    policy = f"{name}\0{_PIXELS_VERSION}\0{PIL.__version__}"
    path = open_cache_folder(folder) / (sha256(os.fsencode(policy)).hexdigest()[:32] + SUFFIX)
    try:
        return _open_disk(path, joined, max_bytes)
    except OSError as error:
        raise RunError(
            f"the cache {path} cannot be used: {error.strerror}. Remove it (finetune cache "
            "clear=images), name another folder (cache_folder=FOLDER), or do without "
            "(dataset.cache=none)."
        ) from None


def _open_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("finetune-images")
    with tempfile.TemporaryFile() as file:  # without a name, it goes with its last user
        return os.dup(file.fileno())


def _open_disk(path: Path, keys: bytes, max_bytes: int) -> ImageCache:
    """Open the file, or replace one that is damaged or worn; others go on with the old one."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _check_owner(fd, path)
            with locked(fd):
                if not _is_at(fd, path):  # replaced while we waited
                    continue
                if os.fstat(fd).st_size == 0:
                    initialise(fd, _slots_for(keys, _SLOTS_PER_IMAGE))
                if is_valid(fd):
                    disk = os.fstatvfs(fd)
                    limit = os.fstat(fd).st_size + disk.f_bavail * disk.f_frsize // 2
                    cache = ImageCache(ImageStore(os.dup(fd), min(max_bytes, limit)), keys)
                    if not _is_worn(cache):
                        return cache
                path.unlink()
        finally:
            os.close(fd)


def _check_owner(fd: int, path: Path) -> None:
    if not is_own(os.fstat(fd)):
        raise RunError(
            f"the cache {path} is not a file of your own. Remove it, or name another folder: "
            "cache_folder=FOLDER."
        )


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _is_worn(cache: ImageCache) -> bool:
    """Say whether too few slots are left, or what is gone takes the room of what is there."""
    store = cache.store
    if store.num_slots < _slots_for(cache.keys, _MIN_SLOTS_PER_IMAGE):
        return True
    used = store.bytes_used()
    return used > store.max_bytes // 2 and cache.describe().bytes < used // 2


def _slots_for(keys: bytes, slots_per_image: float) -> int:
    different = len(np.unique(np.frombuffer(keys, "<u8")[::2]))
    return max(1024, round(slots_per_image * different))
