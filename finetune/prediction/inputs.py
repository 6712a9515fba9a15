"""Which images are predicted: files, folders, globs, manifests, or paths on standard input."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from finetune.data.discover import discover_inputs
from finetune.data.listing import nearest_sibling
from finetune.data.table import read_table
from finetune.errors import DataError, did_you_mean
from finetune.prediction.columns import escape_undecodable

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
STANDARD_INPUT = "-"

# Two letters at least: `C:/photos` is a folder.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Inputs:
    """Images to predict.

    Attributes:
        paths: in order; read once, lazily.
        count: how many there are; None where only the end will tell.
    """

    paths: Iterable[Path]
    count: int | None


def find_inputs(given: str, *, path_column: str = "path", stream: BinaryIO | None = None) -> Inputs:
    """Find the images that a word of the command line means.

    Args:
        given: an image, a folder or a glob, as `finetune.data.discover.discover_inputs` takes
            them; a manifest (a file that ends in .csv, .jsonl or .parquet), whose relative paths
            begin in its folder; or ``-``.
        path_column: of a manifest.
        stream: what is read for ``-``: a path on each line, in the bytes of the file system.
            Blank lines do not count.

    Raises:
        DataError: there is no image, the manifest cannot be read, or something is a URL; for
            standard input, while iterating.
    """
    _refuse_url(given, "input")
    if given == STANDARD_INPUT:
        if stream is None:
            raise DataError("input: got -, but there is no standard input; give a file of paths.")
        return Inputs(_lines(stream), None)
    path = Path(given)
    if path.suffix.lower() in MANIFEST_SUFFIXES and not path.is_dir():
        if path.suffix.lower() == ".jsonl":
            return _json_lines(path, path_column)
        return _table(path, path_column)
    # Texts, for a `Path` is several times as large, and a folder may hold a million.
    names = [str(found) for found in discover_inputs(given)]
    return Inputs(map(Path, names), len(names))


def _table(path: Path, column: str) -> Inputs:
    table = read_table(path, [column])
    names = table.columns[column]
    for row, name in enumerate(names):
        _check_name(name, lambda row=row: table.where(row))  # type: ignore[misc]
    return Inputs((path.parent / name for name in names), len(names))


def _json_lines(path: Path, key: str) -> Inputs:
    """Read the paths twice: once to check and count them, and then as they are needed."""
    count = sum(1 for _ in _json_names(path, key))
    if count == 0:
        raise DataError(f'{path} has no rows; expected one per image: {{"{key}": "a.jpg"}}.')
    return Inputs((path.parent / name for name in _json_names(path, key)), count)


def _json_names(path: Path, key: str) -> Iterator[str]:
    try:
        # surrogateescape: bytes of old file names are kept as they are.
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    name = _json_name(line, key, f"{path}, line {number}")
                    _check_name(name, lambda number=number: f"{path}, line {number}")  # type: ignore[misc]
                    yield name
    except FileNotFoundError:
        raise DataError(f"{path} cannot be read: no such file.{nearest_sibling(path)}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _json_name(line: str, key: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object, got no JSON: {error}.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: got {type(row).__name__}, expected a JSON object.")
    if key not in row:
        names = [str(name) for name in row]
        raise DataError(
            f"{where} has no key `{key}`; got {', '.join(names) or 'none'}. Name the one of the "
            f"paths: path_column=NAME.{did_you_mean(key, names)}"
        )
    name = row[key]
    if not isinstance(name, str):
        raise DataError(f"{where}: `{key}` is {json.dumps(name)[:40]}, expected a path.")
    return name


def _lines(stream: BinaryIO) -> Iterator[Path]:
    for number, line in enumerate(stream, 1):
        name = os.fsdecode(line.rstrip(b"\r\n"))
        if name.strip():
            _refuse_url(name, f"standard input, line {number}")
            yield Path(name)


def _check_name(name: str, where: Callable[[], str]) -> None:
    if not name:
        raise DataError(f"{where()}: the path is empty; expected that of an image.")
    if _URL.match(name):
        _refuse_url(name, where())


def _refuse_url(name: str, where: str) -> None:
    if _URL.match(name):
        raise DataError(
            f"{where}: `{escape_undecodable(name)}` is a URL, and nothing is downloaded; expected "
            "a path on this machine. Download the images first."
        )
