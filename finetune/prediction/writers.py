r"""Predictions as CSV, JSON Lines or Parquet, written as they come and seen only when whole.

Columns: see `finetune.prediction.columns`. JSON Lines has one object ``probabilities`` instead of
the columns per class, and a list ``top`` instead of those of the best classes. Several labels of
one image stand in ``label`` joined by ``|``. A file without a prediction has an ``error`` and
nothing else but its path.

The classes of a ``prediction_set`` stand with the most probable one first, joined by ``|``; in
JSON Lines they are a list, which tells names that hold a ``|`` apart.

Text: every file is valid UTF-8. A byte of a file name that is not UTF-8 is written as ``\xNN``
and a lone surrogate of another origin as ``\uNNNN``; other backslashes stay as they are.

CSV: text that a spreadsheet would run as a formula (it begins with ``= + - @``, a tab or a line
break) gets a ``'`` in front; JSON Lines and Parquet hold it as it is. Text is quoted, numbers
are not, and lines end in ``\n``. Numbers have nine significant digits, which is all of float32.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Protocol

from finetune.models.answers import SEPARATOR
from finetune.prediction.columns import (
    ALL_CLASSES,
    Columns,
    best_classes,
    top_columns,
    unique_names,
)

# `folds` reads these tables, and takes from here how they are written.
from finetune.prediction.columns import class_columns as class_columns
from finetune.prediction.columns import disarm_formula as disarm_formula
from finetune.prediction.columns import escape_undecodable as escape_undecodable
from finetune.prediction.outputs import check_format, replacing_output, standard_output
from finetune.prediction.predict import Prediction

FORMATS = (".csv", ".jsonl", ".parquet")
# A Parquet row group is held in memory until it is full.
_MAX_ROWS_PER_GROUP = 10_000
_MAX_NUMBERS_PER_GROUP = 1_000_000


class PredictionWriter(Protocol):
    """Takes predictions one by one."""

    def write(self, prediction: Prediction) -> None:
        """Add one row."""


@contextmanager
def open_writer(
    path: Path | None, class_names: Sequence[str], columns: Columns = ALL_CLASSES
) -> Iterator[PredictionWriter]:
    """Open a table of predictions; the suffix of ``path`` chooses its format.

    Rows go into a temporary file beside ``path``, which replaces ``path`` when the block ends.
    If the block raises, the temporary file is removed, and what was at ``path`` stays. A missing
    folder is made; a symbolic link is followed.

    Args:
        path: ``.csv``, ``.jsonl`` or ``.parquet`` in any case; ``None`` or ``-`` gives CSV on
            the standard output.
        class_names: in the order of ``Prediction.probabilities``.
        columns: which there are.

    Raises:
        ConfigError: another suffix, or a place where no file can be written; before the block
            runs.
    """
    if path is None or str(path) == "-":
        with standard_output() as stream:
            yield CsvWriter(stream, class_names, columns)
        return
    suffix = check_format("output", path, FORMATS)
    with replacing_output(path) as binary:
        if suffix == ".parquet":
            parquet = ParquetWriter(binary, class_names, columns)
            try:
                yield parquet
            finally:
                parquet.close()
            return
        text = TextIOWrapper(binary, encoding="utf-8", newline="")
        yield text_writer(suffix, text, class_names, columns)
        text.flush()


def text_writer(
    suffix: str,
    stream: IO[str],
    class_names: Sequence[str],
    columns: Columns,
    *,
    continues: bool = False,
) -> "CsvWriter | JsonLinesWriter":
    """Write rows as CSV or JSON Lines; with ``continues``, a header is there already."""
    if suffix == ".csv":
        return CsvWriter(stream, class_names, columns, has_header=continues)
    return JsonLinesWriter(stream, class_names, columns)


class CsvWriter:
    """Comma-separated values; see the module for quoting and formulas."""

    def __init__(
        self,
        stream: IO[str],
        class_names: Sequence[str],
        columns: Columns = ALL_CLASSES,
        *,
        has_header: bool = False,
    ) -> None:
        # Python 3.11 leaves a carriage return in a cell unquoted under QUOTE_MINIMAL.
        self._rows = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        self._cells = _Cells(class_names, columns)
        if not has_header:
            self._rows.writerow(["path", "label", "probability", *self._cells.names, "error"])

    def write(self, prediction: Prediction) -> None:
        """Add one row."""
        probability = prediction.probability
        self._rows.writerow(
            [
                disarm_formula(escape_undecodable(str(prediction.path))),
                disarm_formula(escape_undecodable(prediction.label or "")),
                "" if probability is None else _nine_digits(probability),
                *map(_csv_cell, self._cells.of(prediction)),
                disarm_formula(escape_undecodable(prediction.error or "")),
            ]
        )


class JsonLinesWriter:
    """One JSON object per line, ``null`` for what is missing."""

    def __init__(
        self, stream: IO[str], class_names: Sequence[str], columns: Columns = ALL_CLASSES
    ) -> None:
        self._stream = stream
        self._columns = columns
        self._labels = [escape_undecodable(name) for name in class_names]
        self._names = unique_names(self._labels)

    def write(self, prediction: Prediction) -> None:
        """Add one line."""
        numbers = [_nine_digits(number) for number in prediction.probabilities]
        probability = prediction.probability
        row: dict[str, Any] = {
            "path": escape_undecodable(str(prediction.path)),
            "label": _escape_optional(prediction.label),
            "probability": None if probability is None else _nine_digits(probability),
        }
        if self._columns.abstained:
            row["abstained"] = prediction.abstained
        if self._columns.prediction_set:
            names = prediction.prediction_set
            row["prediction_set"] = names and [escape_undecodable(name) for name in names]
        if self._columns.top_k:
            best = best_classes(prediction.probabilities, self._columns.top_k)
            top = [{"label": self._labels[k], "probability": numbers[k]} for k in best]
            row["top"] = top or None
        if self._columns.probabilities:
            named = dict(zip(self._names, numbers, strict=True)) if numbers else None
            row["probabilities"] = named
        row["error"] = _escape_optional(prediction.error)
        self._stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


class ParquetWriter:
    """Parquet in row groups of at most 10,000 rows and a million numbers; float32 columns."""

    def __init__(
        self, stream: IO[bytes], class_names: Sequence[str], columns: Columns = ALL_CLASSES
    ) -> None:
        # Only those who want Parquet pay for the import of pyarrow.
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._cells = _Cells(class_names, columns)
        kinds = {bool: pa.bool_(), str: pa.string(), float: pa.float32()}
        self._schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("label", pa.string()),
                pa.field("probability", pa.float32()),
                *(pa.field(name, kinds[kind]) for name, kind in self._cells.names.items()),
                pa.field("error", pa.string()),
            ]
        )
        self._file = pq.ParquetWriter(stream, self._schema)
        self._make_batch = pa.record_batch
        self._rows: list[tuple[Any, ...]] = []
        numbers = 1 + len(self._cells.names)
        self._rows_per_group = max(1, min(_MAX_ROWS_PER_GROUP, _MAX_NUMBERS_PER_GROUP // numbers))

    def write(self, prediction: Prediction) -> None:
        """Add one row."""
        self._rows.append(
            (
                escape_undecodable(str(prediction.path)),
                _escape_optional(prediction.label),
                prediction.probability,
                *self._cells.of(prediction),
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


class _Cells:
    """The cells between ``probability`` and ``error`` of a flat table.

    Attributes:
        names: each with the type of its cells.
    """

    def __init__(self, class_names: Sequence[str], columns: Columns) -> None:
        self._labels = [escape_undecodable(name) for name in class_names]
        self._columns = columns
        self._top_k = min(columns.top_k, len(class_names))
        self.names: dict[str, type] = {}
        if columns.abstained:
            self.names["abstained"] = bool
        if columns.prediction_set:
            self.names["prediction_set"] = str
        for name in top_columns(self._top_k):
            self.names[name] = str if name.startswith("label") else float
        if columns.probabilities:
            self.names.update(dict.fromkeys(class_columns(class_names), float))

    def of(self, prediction: Prediction) -> list[str | float | bool | None]:
        """Give a value for each of ``names``; None for all where there is no prediction."""
        numbers = prediction.probabilities
        if not numbers:
            return [None] * len(self.names)
        cells: list[str | float | bool | None] = []
        if self._columns.abstained:
            cells.append(prediction.abstained)
        if self._columns.prediction_set:
            names = SEPARATOR.join(prediction.prediction_set or ())
            cells.append(escape_undecodable(names) or None)
        for index in best_classes(numbers, self._top_k) if self._top_k else ():
            cells += [self._labels[index], numbers[index]]
        if self._columns.probabilities:
            cells += numbers
        return cells


def _csv_cell(value: str | float | bool | None) -> str | float:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            return disarm_formula(value)
        case _:
            return _nine_digits(value)


def _escape_optional(text: str | None) -> str | None:
    return None if text is None else escape_undecodable(text)


def _nine_digits(number: float) -> float:
    return float(f"{number:.9g}")
