"""One image file, read and decoded in full: what an audit knows of it."""

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from finetune.data.auditing.fingerprint import fingerprint
from finetune.data.decode import decode_image, read_header
from finetune.errors import DataError, ImageError

_IMAGES_PER_TASK = 16


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of one file.

    Attributes:
        trouble: why it cannot be used; the rest is empty then, but ``reason``.
        reason: the same in words.
        digest: SHA-256 of the content.
        format: by content, not by suffix.
        mode: pixel type, as `read_header` names it.
        width_px: after EXIF orientation.
        height_px: likewise.
        is_constant: all pixels have one value.
        fingerprint: the bytes of `fingerprint`'s float16, none for a flat image.
    """

    trouble: Literal["unreadable", "too_large"] | None = None
    reason: str = ""
    digest: bytes = b""
    format: str = ""
    mode: str = ""
    width_px: int = 0
    height_px: int = 0
    is_constant: bool = False
    fingerprint: bytes = b""


def examine_files(
    paths: Sequence[Path], *, workers: int, max_megapixels: float
) -> Iterator[Report]:
    """Examine many files, in order; arguments as for `audit_folder`.

    Raises:
        DataError: a worker process died.
    """
    examine = partial(examine_file, max_megapixels=max_megapixels)
    if workers < 1 or not paths:
        yield from map(examine, paths)
        return
    # A fork would copy whatever locks the threads of this process hold.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield from pool.map(examine, paths, chunksize=_IMAGES_PER_TASK)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images died, for lack of memory perhaps; expected it to go "
            "on. Try dataset.workers=1, or a lower dataset.max_megapixels."
        ) from error


def examine_file(path: Path, *, max_megapixels: float) -> Report:
    """Read and decode a file in full, but one that is too large no further than its header."""
    try:
        # Of the path, not of the content: neither a pipe nor a huge file is to be read whole.
        header = read_header(path)
        megapixels = header.width_px * header.height_px / 1e6
        if megapixels > max_megapixels:
            return Report(
                "too_large",
                f"{header.width_px} x {header.height_px} pixels are {megapixels:.4g} megapixels, "
                f"expected at most dataset.max_megapixels={max_megapixels:g}",
            )
        content = path.read_bytes()
        pixels = decode_image(content, max_megapixels=max_megapixels)
    except ImageError as error:
        return Report("unreadable", str(error))
    except OSError as error:
        return Report("unreadable", f"cannot be read: {error.strerror}")
    height_px, width_px, _ = pixels.shape
    looks = fingerprint(pixels)
    return Report(
        digest=hashlib.sha256(content).digest(),
        format=header.format,
        mode=header.mode,
        width_px=width_px,
        height_px=height_px,
        is_constant=looks is None and bool((pixels == pixels[0, 0]).all()),
        fingerprint=b"" if looks is None else looks.tobytes(),
    )
