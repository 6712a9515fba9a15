"""A table of predictions that outlives an interruption, and goes on where it stopped.

Rows of ``labels.csv`` go into ``labels.csv.part``, which becomes ``labels.csv`` when all are
there. ``labels.csv.part.json`` says with which model and settings it began. To go on, what was cut
in the middle of a row or of a batch is dropped: the batches are then those of a table that was
never interrupted, and so the numbers are the same to the last bit.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any

from finetune.errors import ConfigError, DataError
from finetune.prediction.columns import Columns, disarm_formula, escape_undecodable
from finetune.prediction.outputs import check_format, writable_place
from finetune.prediction.writers import PredictionWriter, text_writer
from finetune.run import write_json

FORMATS = (".csv", ".jsonl")


@dataclass(frozen=True)
class Done:
    """What a table holds already.

    Attributes:
        rows: whole batches of them.
        errors: of these, those with an error.
        abstained: of these, those whose answer was too improbable.
        size: bytes of the file up to there; what follows is dropped.
    """

    rows: int = 0
    errors: int = 0
    abstained: int = 0
    size: int = 0


class PartialTable:
    """The files of a table that is not whole yet.

    Args:
        output: ``.csv`` or ``.jsonl``; its folder is made.

    Attributes:
        is_ours: whether this process has begun to write.

    Raises:
        ConfigError: another suffix, or no file can be written there.
    """

    def __init__(self, output: Path) -> None:
        self.suffix = check_format("output", output, FORMATS)
        self.output = writable_place(output, "output")
        self.part = self.output.with_name(f"{self.output.name}.part")
        self.record = self.output.with_name(f"{self.output.name}.part.json")
        self.is_ours = False

    @property
    def has_rows(self) -> bool:
        """Whether an interrupted prediction has left something."""
        return self.part.is_file() and self.part.stat().st_size > 0

    def settings(self) -> dict[str, Any] | None:
        """Read with what the table began; None where there is none to go on with.

        Raises:
            ConfigError: the record is damaged.
        """
        if not self.part.is_file():
            return None
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ConfigError(
                f"resume: {self.record} is missing or damaged, so that nobody knows how "
                f"{self.part.name} began. Begin anew with resume=false."
            )
        return record

    def find_done(self, paths: Iterator[Path], *, batch_size: int) -> Done:
        """Find the whole batches of rows, and skip as many of the inputs.

        Args:
            paths: the inputs, of which those that are done are taken.
            batch_size: of the interrupted prediction.

        Raises:
            DataError: the inputs are not those of the rows.
        """
        try:
            with self.part.open("rb") as file:
                rows = sum(1 for _ in _read_rows(file, self.suffix))
                rows -= rows % batch_size
                file.seek(0)
                return self._skip(file, paths, rows)
        except OSError as error:
            raise ConfigError(f"resume: {self.part} cannot be read: {error.strerror}.") from error

    def _skip(self, file: IO[bytes], paths: Iterator[Path], rows: int) -> Done:
        errors = abstained = size = 0
        for number, (row, end) in enumerate(islice(_read_rows(file, self.suffix), rows), 1):
            path = next(paths, None)
            expected = None if path is None else self._name_of(path)
            if row["path"] != expected:
                got = "no image" if expected is None else f"`{expected}`"
                raise DataError(
                    f"resume: row {number} of {self.part} is of `{row['path']}`, but the input "
                    f"has {got} there; it is not what it was. Begin anew with resume=false."
                )
            errors += bool(row["error"])
            abstained += row.get("abstained") in (True, "true")
            size = end
        return Done(rows, errors, abstained, size)

    def _name_of(self, path: Path) -> str:
        name = escape_undecodable(str(path))
        return disarm_formula(name) if self.suffix == ".csv" else name

    @contextmanager
    def open(
        self,
        class_names: list[str],
        columns: Columns,
        *,
        settings: Mapping[str, Any],
        done: Done,
    ) -> Iterator[PredictionWriter]:
        """Write after what is done; the table is whole when the block ends.

        If the block raises, the rows stay in the file, and what was at ``output`` too.

        Args:
            class_names: in the order of ``Prediction.probabilities``.
            columns: which there are.
            settings: plain values, for `settings`.
            done: what is kept of the file.

        Raises:
            ConfigError: another process writes there, or the file cannot be written.
        """
        try:
            file = self.part.open("ab")
        except OSError as error:
            raise ConfigError(f"output: cannot write `{self.part}`: {error.strerror}.") from error
        with file:
            _lock(file, self.part)
            self.is_ours = True
            file.truncate(done.size)
            write_json(self.record, settings)
            # Closed on the way out of a failure too, which writes what it still holds.
            with TextIOWrapper(file, encoding="utf-8", newline="") as text:
                has_header = done.rows > 0
                yield text_writer(self.suffix, text, class_names, columns, continues=has_header)
                text.flush()
                os.fsync(file.fileno())
                self.part.replace(self.output)
        self.record.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the files of a table that has no rows worth keeping."""
        self.part.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def check_settings(began: Mapping[str, Any], settings: Mapping[str, Any], *, part: Path) -> None:
    """Compare how a table began with how it would go on.

    Raises:
        ConfigError: a setting differs; names the first.
    """
    for key, value in settings.items():
        if began.get(key) == value:
            continue
        if key == "model":
            raise ConfigError(
                f"resume: {part} was begun with another model; give that one, or begin anew with "
                "resume=false."
            )
        raise ConfigError(
            f"resume: {part} was begun with {key}={_word(began.get(key))}, got {key}="
            f"{_word(value)}. Give the same, or begin anew with resume=false."
        )


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_rows(file: IO[bytes], suffix: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole row with the place where it ends; stop at the first that is not whole."""
    rows = _read_csv(file) if suffix == ".csv" else _read_json(file)
    for row, end in rows:
        if not isinstance(row.get("path"), str) or "error" not in row:
            return
        yield row, end


def _read_csv(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    header: list[str] | None = None
    end, record = 0, b""
    for line in file:
        record += line
        # A cell may hold line breaks: the row goes on as long as a quote is open.
        if not record.endswith(b"\n") or record.count(b'"') % 2:
            continue
        # The first cell and the last are text, and text is always quoted.
        if not (record.startswith(b'"') and record.endswith(b'"\n')):
            return
        try:
            (cells,) = csv.reader([record.decode()], strict=True)
        except (ValueError, csv.Error):
            return
        end, record = end + len(record), b""
        if header is None:
            header = cells
        elif len(cells) != len(header):
            return
        else:
            yield dict(zip(header, cells, strict=True)), end


def _read_json(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    end = 0
    for line in file:
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(row, dict):
            return
        end += len(line)
        yield row, end


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep a second process from writing into the same file; the lock ends with this one."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"output: another process writes into `{path}`. Wait for it, or name another file."
        ) from None
    except OSError:  # a network file system without locks
        return
