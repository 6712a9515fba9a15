"""A large file from its publisher: resumed where the connection broke, and verified."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cache import is_own_file
from finetune.errors import DataError

if TYPE_CHECKING:
    from requests import RequestException, Response

CHUNK_BYTES = 2**16
REASONS = {
    "ConnectTimeout": "nobody answers",
    "ReadTimeout": "nobody answers",
    "SSLError": "the certificate of the server, or of a proxy, is not trusted",
    "ProxyError": "the proxy refuses",
}


@dataclass(frozen=True, slots=True)
class PublicFile:
    """A file that its publisher never changes.

    Attributes:
        url: where it is.
        checksum: ``md5:…`` or ``sha256:…``, hexadecimal.
        size_bytes: its length.
    """

    url: str
    checksum: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        attempts: how often to ask, >= 1; only once where nothing comes at all.
        pause_s: between two attempts, in seconds.
        connect_s: for a connection, in seconds.
        read_s: for each piece of the answer, in seconds.
    """

    attempts: int = 5
    pause_s: float = 2.0
    connect_s: float = 5.0
    read_s: float = 30.0


def download(
    file: PublicFile,
    path: Path,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
    patience: Patience = Patience(),
) -> None:
    """Fetch a file to ``path``, unless it is there.

    Whatever ends the download, what was received stays as ``<name>.part`` beside ``path``, and
    the next call asks only for the rest. A whole file with another checksum is removed, and so is
    a link or another user's file in the place of either.

    Args:
        file: what to fetch.
        path: where it goes; its folder exists.
        on_progress: called with the bytes received so far, those of earlier calls included.
        patience: with the server.

    Raises:
        DataError: it cannot be fetched or written, or its content is another.
    """
    import pooch  # it takes longer to import than most commands need to run

    part = path.with_name(f"{path.name}.part")

    def fetch(_url: str, target: str, _pooch: object) -> None:
        _receive(file, part, on_progress, patience)
        part.replace(target)

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        _remove_foreign(path, part)
        pooch.retrieve(file.url, file.checksum, path.name, path.parent, downloader=fetch)
    except ValueError as error:  # pooch compared the checksums, and removed what was received
        raise DataError(
            f"{file.url}: {str(error).partition('. ')[0]}. What was received is removed; the same "
            "command begins anew."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be written: {error.strerror or error}; "
            f"{file.size_bytes / 1e6:.0f} MB are needed."
        ) from error


def check_file(file: PublicFile, path: Path) -> None:
    """Compare the checksum of a file that somebody brought, which is only read.

    Raises:
        DataError: it cannot be read, or its content is another.
    """
    import pooch

    algorithm, _, expected = file.checksum.partition(":")
    try:
        got = pooch.file_hash(path, alg=algorithm)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if got != expected:
        raise DataError(
            f"{path} is not the file of {file.url}: got {_size(path):,} bytes with the checksum "
            f"{algorithm}:{got}, expected {file.size_bytes:,} bytes with {file.checksum}. "
            "Download it again."
        )


def _remove_foreign(*paths: Path) -> None:
    """Take away what this user did not write: a link would be written through."""
    for path in paths:
        if (path.is_symlink() or path.exists()) and not is_own_file(path):
            path.unlink()


def _receive(
    file: PublicFile, part: Path, on_progress: Callable[[int], None], patience: Patience
) -> None:
    """Complete ``part``; a connection that breaks in the middle is made again."""
    import requests

    for attempt in range(1, patience.attempts + 1):
        before = _size(part)
        try:
            _receive_rest(file, part, on_progress, patience)
        except requests.RequestException as error:
            if attempt == patience.attempts or _size(part) == before:
                raise DataError(_failure(error, file, _size(part))) from error
            time.sleep(patience.pause_s)
        else:
            return


def _receive_rest(
    file: PublicFile, part: Path, on_progress: Callable[[int], None], patience: Patience
) -> None:
    """Ask for what ``part`` lacks, once."""
    import requests

    begin = _size(part)
    if begin == file.size_bytes:
        return
    # A compressed answer would have other offsets.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    timeouts = (patience.connect_s, patience.read_s)
    with requests.get(file.url, headers=headers, stream=True, timeout=timeouts) as response:
        if response.status_code in (206, 416) and not _continues(response, begin):
            part.unlink(missing_ok=True)
            raise requests.RequestException("it cannot go on from there; the next attempt begins")
        response.raise_for_status()
        if response.status_code != 206:  # a server that always sends the whole file
            begin = 0
        _check_length(response, file, begin)
        # Not appended: a second process would write the same bytes to the same place.
        with part.open("r+b" if begin else "wb") as output:
            output.seek(begin)
            for chunk in response.iter_content(CHUNK_BYTES):
                output.write(chunk)
                on_progress(output.tell())
                if output.tell() > file.size_bytes:  # an endless answer; the checksum refuses it
                    return


def _continues(response: "Response", begin: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == begin


def _check_length(response: "Response", file: PublicFile, begin: int) -> None:
    """Refuse another file, such as the log-in page of a network, before it replaces anything."""
    rest = response.headers.get("Content-Length")
    if rest is not None and begin + int(rest) != file.size_bytes:
        raise DataError(
            f"{file.url}: the server sends {begin + int(rest):,} bytes, expected "
            f"{file.size_bytes:,}. Perhaps the log-in page of a network stands before it."
        )


def _failure(error: "RequestException", file: PublicFile, received: int) -> str:
    if error.response is not None:
        reason = f"the server answers {error.response.status_code} {error.response.reason}"
    else:
        reason = REASONS.get(type(error).__name__, "there is no connection, or it broke off")
    kept = f" {received / 1e6:.0f} of {file.size_bytes / 1e6:.0f} MB are kept for the next try."
    return f"{file.url} cannot be fetched: {reason}.{kept if received else ''}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
