"""Files that are written by a prediction: seen only when whole, or standard output."""

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from finetune.errors import ConfigError, did_you_mean
from finetune.prediction.columns import escape_undecodable
from finetune.run import replacing


def check_format(key: str, path: Path, formats: Sequence[str]) -> str:
    """Return the suffix of ``path`` in lower case.

    Raises:
        ConfigError: it is none of ``formats``; names ``key``.
    """
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise ConfigError(
            f"{key}: got `{escape_undecodable(str(path))}`, expected a file name that ends in "
            f"{', '.join(formats[:-1])} or {formats[-1]}.{did_you_mean(suffix, formats)}"
        )
    return suffix


@contextmanager
def replacing_output(path: Path, key: str = "output") -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes ``path`` if the block ends well, and vanishes if not."""
    path = writable_place(path, key)
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(replacing(path))
            stream = stack.enter_context(temporary.open("wb"))
        except OSError as error:
            raise _cannot_write(path, key, error) from error
        yield stream
        # Closed before it is renamed.
        stream.close()


def writable_place(path: Path, key: str) -> Path:
    """Make the folder of a file; a link stays a link, and its target is given.

    Raises:
        ConfigError: no file can be written there; names ``key``.
    """
    try:
        path = path.resolve()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, key, error) from error
    return path


def _cannot_write(path: Path, key: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{key}: cannot write `{escape_undecodable(str(path))}`: {error.strerror or error}. "
        "Name a file in a folder that you may write to."
    )


@contextmanager
def standard_output() -> Iterator[IO[str]]:
    """Give standard output as UTF-8 without translated line ends, whatever the locale says."""
    sys.stdout.flush()
    text = TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        # Closes only the wrapper; detaching writes out what it holds.
        text.detach()
