r"""Predictions as CSV, JSON Lines or Parquet, written as they come and seen only when whole.

Columns: ``path``, ``label``, ``probability``, one ``p_<class>`` per class, ``error``. JSON Lines
has one object ``probabilities`` instead of the columns per class. Several labels of one image
stand in ``label`` joined by ``|``. A file without a prediction has an ``error`` and nothing else
but its path.

Text: every file is valid UTF-8. A byte of a file name that is not UTF-8 is written as ``\xNN``
and a lone surrogate of another origin as ``\uNNNN``; other backslashes stay as they are.

CSV: text that a spreadsheet would run as a formula (it begins with ``= + - @``, a tab or a line
break) gets a ``'`` in front; JSON Lines and Parquet hold it as it is. Text is quoted, numbers
are not, and lines end in ``\n``. Numbers have nine significant digits, which is all of float32.
"""

import csv
import errno
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Protocol

from finetune.errors import ConfigError, did_you_mean
from finetune.prediction.predict import Prediction
from finetune.run import replacing

_FORMATS = (".csv", ".jsonl", ".parquet")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
# A Parquet row group is held in memory until it is full.
_MAX_ROWS_PER_GROUP = 10_000
_MAX_NUMBERS_PER_GROUP = 1_000_000


class PredictionWriter(Protocol):
    """Takes predictions one by one."""

    def write(self, prediction: Prediction) -> None:
        """Add one row."""


@contextmanager
def open_writer(path: Path | None, class_names: Sequence[str]) -> Iterator[PredictionWriter]:
    """Open a table of predictions; the suffix of ``path`` chooses its format.

    Rows go into a temporary file beside ``path``, which replaces ``path`` when the block ends.
    If the block raises, the temporary file is removed, and what was at ``path`` stays. A missing
    folder is made; a symbolic link is followed.

    Args:
        path: ``.csv``, ``.jsonl`` or ``.parquet`` in any case; ``None`` or ``-`` gives CSV on
            the standard output.
        class_names: in the order of ``Prediction.probabilities``.

    Raises:
        ConfigError: another suffix, or a place where no file can be written; before the block
            runs.
    """
    if path is None or str(path) == "-":
        with _standard_output() as stream:
            yield CsvWriter(stream, class_names)
        return
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ConfigError(
            f"output: got `{escape_undecodable(str(path))}`, expected a file name that ends in "
            f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.{did_you_mean(suffix, _FORMATS)}"
        )
    with _replacing(path) as binary:
        if suffix == ".parquet":
            parquet = ParquetWriter(binary, class_names)
            try:
                yield parquet
            finally:
                parquet.close()
            return
        text = TextIOWrapper(binary, encoding="utf-8", newline="")
        yield (
            CsvWriter(text, class_names) if suffix == ".csv" else JsonLinesWriter(text, class_names)
        )
        text.flush()


class CsvWriter:
    """Comma-separated values; see the module for quoting and formulas."""

    def __init__(self, stream: IO[str], class_names: Sequence[str]) -> None:
        # Python 3.11 leaves a carriage return in a cell unquoted under QUOTE_MINIMAL.
        self._rows = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        self._num_classes = len(class_names)
        self._rows.writerow(["path", "label", "probability", *class_columns(class_names), "error"])

    def write(self, prediction: Prediction) -> None:
        """Add one row."""
        row: list[str | float] = [_nine_digits(number) for number in prediction.probabilities]
        self._rows.writerow(
            [
                disarm_formula(escape_undecodable(str(prediction.path))),
                disarm_formula(escape_undecodable(prediction.label or "")),
                "" if prediction.probability is None else _nine_digits(prediction.probability),
                *(row or [""] * self._num_classes),
                disarm_formula(escape_undecodable(prediction.error or "")),
            ]
        )


class JsonLinesWriter:
    """One JSON object per line, ``null`` for what is missing."""

    def __init__(self, stream: IO[str], class_names: Sequence[str]) -> None:
        self._stream = stream
        self._names = _unique([escape_undecodable(name) for name in class_names])

    def write(self, prediction: Prediction) -> None:
        """Add one line."""
        numbers = [_nine_digits(number) for number in prediction.probabilities]
        probability = prediction.probability
        row = {
            "path": escape_undecodable(str(prediction.path)),
            "label": _escape_optional(prediction.label),
            "probability": None if probability is None else _nine_digits(probability),
            "probabilities": dict(zip(self._names, numbers, strict=True)) if numbers else None,
            "error": _escape_optional(prediction.error),
        }
        self._stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


class ParquetWriter:
    """Parquet in row groups of at most 10,000 rows and a million numbers; float32 columns."""

    def __init__(self, stream: IO[bytes], class_names: Sequence[str]) -> None:
        # Only those who want Parquet pay for the import of pyarrow.
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = ["probability", *class_columns(class_names)]
        self._schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("label", pa.string()),
                *(pa.field(name, pa.float32()) for name in numbers),
                pa.field("error", pa.string()),
            ]
        )
        self._file = pq.ParquetWriter(stream, self._schema)
        self._make_batch = pa.record_batch
        self._num_classes = len(class_names)
        self._rows: list[tuple[Any, ...]] = []
        self._rows_per_group = max(
            1, min(_MAX_ROWS_PER_GROUP, _MAX_NUMBERS_PER_GROUP // len(numbers))
        )

    def write(self, prediction: Prediction) -> None:
        """Add one row."""
        self._rows.append(
            (
                escape_undecodable(str(prediction.path)),
                _escape_optional(prediction.label),
                prediction.probability,
                *(prediction.probabilities or (None,) * self._num_classes),
                _escape_optional(prediction.error),
            )
        )
        if len(self._rows) == self._rows_per_group:
            self._flush()

    def close(self) -> None:
        """Write what is left and the footer."""
        with self._file:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._file.write_batch(self._make_batch(columns, schema=self._schema))
            self._rows.clear()


def class_columns(class_names: Sequence[str]) -> list[str]:
    """Name a column ``p_<class>`` per class, with ``_2``, ``_3`` … where a name is taken.

    >>> class_columns(["ant", "bee"])
    ['p_ant', 'p_bee']
    """
    return _unique([f"p_{escape_undecodable(name)}" for name in class_names])


def disarm_formula(text: str) -> str:
    """Put ``'`` before text that a spreadsheet would run as a formula.

    Source: OWASP, CSV Injection.
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def escape_undecodable(text: str) -> str:
    r"""Write bytes that Python could not decode as ``\xNN``, so that the text is valid UTF-8.

    >>> escape_undecodable(os.fsdecode(b"caf\xe9.jpg"))
    'caf\\xe9.jpg'
    """
    return re.sub("[\ud800-\udfff]", _escape_surrogate, text)


def _escape_surrogate(match: re.Match[str]) -> str:
    code = ord(match[0])
    # PEP 383: byte NN of a file name is decoded as U+DCNN.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _escape_optional(text: str | None) -> str | None:
    return None if text is None else escape_undecodable(text)


def _nine_digits(number: float) -> float:
    return float(f"{number:.9g}")


def _unique(names: Sequence[str]) -> list[str]:
    taken: set[str] = set(names)
    seen: set[str] = set()
    unique = []
    for name in names:
        candidate, count = name, 1
        while candidate in seen or (count > 1 and candidate in taken):
            count += 1
            candidate = f"{name}_{count}"
        seen.add(candidate)
        unique.append(candidate)
    return unique


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes ``path`` if the block ends well, and vanishes if not."""
    with ExitStack() as stack:
        try:
            # A link stays a link, and its target is replaced.
            path = path.resolve()
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(replacing(path))
        except OSError as error:
            raise ConfigError(
                f"output: cannot write `{escape_undecodable(str(path))}`: "
                f"{error.strerror or error}. Name a file in a folder that you may write to."
            ) from error
        with temporary.open("wb") as stream:
            yield stream


@contextmanager
def _standard_output() -> Iterator[IO[str]]:
    """Give standard output as UTF-8 without translated line ends, whatever the locale says."""
    sys.stdout.flush()
    text = TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        # Closes only the wrapper; detaching writes out what it holds.
        text.detach()
