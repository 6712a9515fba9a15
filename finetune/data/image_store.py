"""A file of decoded images by key, which several processes read and write at once.

    header    magic, number of slots, bytes in use
    slots     a hash table: key → where the pixels lie, their height and width
    pixels    [height, width, 3] uint8, one image after the other

Writers take turns to reserve room and to fill a slot (``lockf``), and write their pixels at once. A
slot is filled after its pixels, and both carry a checksum: what a killed writer, a power cut or a
bad disk left counts as not stored. Pixels are written by ``pwrite``, which raises on a full disk,
where a write to mapped memory would kill the process; reading is through mapped memory.
"""

import mmap
import multiprocessing.context
import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16

_MAGIC = b"ft-img-1"
_HEADER = struct.Struct("<8sQQ")  # magic, slots, bytes in use
_SLOT = struct.Struct("<16sQIII")  # _Slot
_SEAL_BYTES = 4  # a checksum behind the header and behind each slot
_HEADER_BYTES = _HEADER.size + _SEAL_BYTES
_SLOT_BYTES = _SLOT.size + _SEAL_BYTES
_SLOT_FIELDS = np.dtype(
    [("key", "<u8", 2), ("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("sums", "<u4", 2)]
)
_EMPTY = bytes(_SLOT_BYTES)
_MAX_PROBES = 64
_MAX_BYTES = 1 << 53
"""Above what any file system holds; up to here a float is exact."""

Pixels = npt.NDArray[np.uint8]


class _Slot(NamedTuple):
    key: bytes
    offset: int
    height: int
    width: int
    checksum: int


class ImageStore:
    """The images in an open file that `initialise` prepared; the file is closed with it.

    One thread of each process may use it. It survives a fork, and travels to a process that is
    being started (``spawn``), but cannot be pickled otherwise.

    Args:
        fd: of the file, readable and writable.
        max_bytes: the file does not grow beyond it.
    """

    def __init__(self, fd: int, max_bytes: int) -> None:
        weakref.finalize(self, os.close, fd)
        self._fd = fd
        self.max_bytes = max_bytes
        self.num_slots: int = _read_header(fd)[1]
        # Never mapped anew: that closes a descriptor of the file, which would end our lock.
        self._slots = mmap.mmap(fd, _first_pixel(self.num_slots), access=mmap.ACCESS_READ)
        self._pixels = self._slots
        self._verified = mmap.mmap(-1, self.num_slots)  # shared with forked processes
        self._is_full = False

    def get(self, key: bytes) -> Pixels | None:
        """Return a copy of an image ``[h, w, 3]``, or None where it is not stored, or damaged."""
        place, slot = self._find(key)
        if place is None or slot is None:
            return None
        size = slot.height * slot.width * 3
        if slot.offset + size > len(self._pixels):  # the file has grown
            self._pixels = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
            if slot.offset + size > len(self._pixels):
                return None
        stored = np.frombuffer(self._pixels, np.uint8, size, slot.offset)
        if not self._verified[place]:
            if zlib.crc32(stored.data) != slot.checksum:
                return None
            self._verified[place] = True
        return stored.reshape(slot.height, slot.width, 3).copy()

    def put(self, key: bytes, image: Pixels) -> bool:
        """Store an image ``[h, w, 3]``; False where there is no room for it."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"got {image.dtype} {image.shape}, expected uint8 [h, w, 3]")
        if self._is_full:
            return False
        image = np.ascontiguousarray(image)
        checksum = zlib.crc32(image.data)
        try:
            offset = self._reserve(key, image.nbytes)
            if offset is not None:
                self._write_pixels(image, offset)
                self._publish(_Slot(key, offset, image.shape[0], image.shape[1], checksum))
                return True
        except OSError:  # the disk is full or gone
            pass
        self._is_full = True
        return False

    def bytes_used(self) -> int:
        """Count the bytes of all images, whoever stored them, with those that nobody needs."""
        return int(_read_header(self._fd)[2]) - _first_pixel(self.num_slots)

    def sizes(self, keys: bytes) -> npt.NDArray[np.int64]:
        """Give the bytes of each stored image whose key is one of these, which are joined."""
        slots = _occupied(self._slots, self.num_slots)
        return _sizes(slots[np.isin(slots["key"][:, 0], np.frombuffer(keys, "<u8")[::2])])

    def _reserve(self, key: bytes, size: int) -> int | None:
        """Take bytes at the end for this process; None where there is no room for them."""
        with locked(self._fd):
            offset: int = _read_header(self._fd)[2]
            place, _ = self._find(key)
            if place is None or offset + size > self.max_bytes:
                return None
            _write_header(self._fd, self.num_slots, offset + size)
            return offset

    def _write_pixels(self, image: Pixels, offset: int) -> None:
        try:
            _write(self._fd, image.data.cast("B"), offset)
        except OSError:
            # The disk's last bytes belong to others.
            with suppress(OSError), locked(self._fd):
                if _read_header(self._fd)[2] == offset + image.nbytes:
                    os.ftruncate(self._fd, offset)
                    _write_header(self._fd, self.num_slots, offset)
            raise

    def _publish(self, slot: _Slot) -> None:
        """Make pixels known."""
        with locked(self._fd):
            place, _ = self._find(slot.key)
            if place is not None:  # others may have taken the last place since
                os.pwrite(self._fd, _seal(_SLOT.pack(*slot)), _offset_of(place))

    def _find(self, key: bytes) -> tuple[int | None, _Slot | None]:
        """Return the place of a key, and what stands there: None where it is free.

        Without a place, the table is too full around it.
        """
        first = int.from_bytes(key[:8], "little")
        for probe in range(min(_MAX_PROBES, self.num_slots)):
            place = (first + probe) % self.num_slots
            start = _offset_of(place)
            content = self._slots[start : start + _SLOT_BYTES]
            if content == _EMPTY:
                return place, None
            if content.startswith(key) and _is_sealed(content):
                return place, _Slot(*_SLOT.unpack_from(content))
        return None, None

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.context.get_spawning_popen() is None:
            raise TypeError("open images travel to a starting process only; open them again there")
        return _adopt, (DupFd(self._fd), self.max_bytes)


def initialise(fd: int, num_slots: int) -> None:
    """Make an empty file one that holds no image, with room for less than ``num_slots``."""
    # Not by ftruncate: a hole that is read on a full tmpfs kills the process.
    end, step = _first_pixel(num_slots), 1 << 20
    for start in range(0, end, step):
        _write(fd, memoryview(bytes(min(step, end - start))), start)
    _write_header(fd, num_slots, end)


def is_valid(fd: int) -> bool:
    """Say whether `initialise` came to its end with this file, and no slot contradicts the header.

    After a power cut the header may be older than some slots; the pixels of these would be
    overwritten.
    """
    header = os.pread(fd, _HEADER_BYTES, 0)
    if not header.startswith(_MAGIC) or not _is_sealed(header):
        return False
    _, num_slots, used = _HEADER.unpack_from(header)
    # First, since a number that somebody made up would ask for all the memory.
    if not 0 < num_slots <= os.fstat(fd).st_size // _SLOT_BYTES or used > _MAX_BYTES:
        return False
    start = _first_pixel(num_slots)
    table = os.pread(fd, start, 0)
    if len(table) < start or used < start:
        return False
    slots = _occupied(table, num_slots)
    # As floats, which do not overflow; whole numbers are exact up to 9 PB.
    sizes = 3.0 * slots["height"] * slots["width"]
    is_inside = (slots["offset"] >= start) & (slots["offset"] + sizes <= used)
    return bool((is_inside & (sizes > 0)).all())


@contextmanager
def locked(fd: int) -> Iterator[None]:
    """Hold the file's lock against other processes; the system gives it back if we are killed.

    ``flock`` would not do: forked processes share it.
    """
    import fcntl  # not on Windows

    fcntl.lockf(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)


def _adopt(fd: Any, max_bytes: int) -> ImageStore:
    return ImageStore(fd.detach(), max_bytes)


def _write(fd: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written


def _write_header(fd: int, num_slots: int, used: int) -> None:
    os.pwrite(fd, _seal(_HEADER.pack(_MAGIC, num_slots, used)), 0)


def _read_header(fd: int) -> tuple[Any, ...]:
    return _HEADER.unpack(os.pread(fd, _HEADER.size, 0))


def _seal(content: bytes) -> bytes:
    return content + zlib.crc32(content).to_bytes(_SEAL_BYTES, "little")


def _is_sealed(content: bytes) -> bool:
    return _seal(content[:-_SEAL_BYTES]) == content


def _occupied(table: bytes | mmap.mmap, num_slots: int) -> npt.NDArray[np.void]:
    slots = np.frombuffer(table, _SLOT_FIELDS, num_slots, _HEADER_BYTES)
    occupied: npt.NDArray[np.void] = slots[slots["sums"][:, 1] != 0]
    return occupied


def _sizes(slots: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    sizes: npt.NDArray[np.int64] = 3 * slots["height"].astype(np.int64) * slots["width"]
    return sizes


def _first_pixel(num_slots: int) -> int:
    return _offset_of(num_slots)


def _offset_of(place: int) -> int:
    return _HEADER_BYTES + place * _SLOT_BYTES
