"""Tables of text: the wanted columns of a CSV or Parquet file, whole, one list for each."""

import contextlib
import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from finetune.data.listing import nearest_sibling
from finetune.errors import DataError, did_you_mean

_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        path: the file.
        columns: by name; an empty cell is ``""``.
        lines: in which line of the file each row ends; for Parquet, the number of the row.
    """

    path: Path
    columns: Mapping[str, list[str]]
    lines: Sequence[int]

    def where(self, row: int) -> str:
        """Say where a row stands, for a message."""
        unit = "row" if _is_parquet(self.path) else "line"
        return f"{self.path}, {unit} {self.lines[row]}"


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read columns of a ``.parquet`` file, or of a text file separated by ``,``, ``;`` or tabs.

    The separator is the one that gives the header line the most cells. The text is UTF-8, with or
    without a byte order mark; other bytes, as in the names of old files, are kept as they are.
    Numbers of a Parquet file become text: ``1`` stays ``1``, also where an empty cell beside it
    made the column one of ``1.0``.

    Args:
        path: the file.
        required: names of columns that must be there.
        optional: names of columns that are read where they are there.

    Raises:
        DataError: no such file, it is no table, it has no rows, or a column is missing.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a .csv or .parquet file.")
    try:
        read = _read_parquet if _is_parquet(path) else _read_csv
        table = read(path, required, optional)
    except FileNotFoundError:
        raise DataError(f"{path} cannot be read: no such file.{nearest_sibling(path)}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not table.lines:
        raise DataError(f"{path} has no rows; expected one per image: {', '.join(required)}.")
    return table


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _read_csv(path: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=_find_delimiter(file), strict=True)
            header = [name.strip() for name in next(reader, [])]
            if any("\0" in name for name in header):
                raise DataError(f"{path} is not UTF-8 text; save it as CSV UTF-8.")
            names = _choose_columns(path, header, required, optional)
            indices = [header.index(name) for name in names]
            cells: list[list[str]] = [[] for _ in names]
            lines = array("q")
            for row in _full_rows(path, reader, len(header)):
                for index, column in zip(indices, cells, strict=True):
                    column.append(row[index])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}.") from error
    return Table(path, dict(zip(names, cells, strict=True)), lines)


def _find_delimiter(file: TextIO) -> str:
    line = file.readline()
    file.seek(0)
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([line], delimiter=mark), [])))


def _full_rows(path: Path, reader: Any, width: int) -> Iterator[list[str]]:
    """Yield the rows that are not blank."""
    for row in reader:
        if len(row) == width:
            yield row
        elif row:
            raise DataError(
                f"{path}, line {reader.line_num}: expected {width} cells, as in the header; got "
                f"{len(row)}. Quote a cell that holds a separator."
            )


def _read_parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    # Only here, for it takes a third of a second: most data sets have no such file.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table: it takes a folder `a=b` above the file for a column.
        with pq.ParquetFile(path) as file:
            names = _choose_columns(path, file.schema_arrow.names, required, optional)
            arrow = file.read(columns=names, use_threads=False)
        columns = {name: _to_text(arrow.column(name)) for name in names}
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path} is no Parquet table of text and numbers: {error}") from error
    return Table(path, columns, range(1, arrow.num_rows + 1))


def _to_text(column: Any) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        with contextlib.suppress(pa.ArrowInvalid):  # not whole
            column = column.cast(pa.int64())
    return [cell or "" for cell in column.cast(pa.string()).to_pylist()]


def _choose_columns(
    path: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> list[str]:
    for name in required:
        if name not in header:
            raise DataError(
                f"{path} has no column `{name}`; got {', '.join(header) or 'none'}, expected "
                f"{', '.join(required)}.{did_you_mean(name, header)}"
            )
    names = list(dict.fromkeys([*required, *(name for name in optional if name in header)]))
    for name in names:
        if header.count(name) > 1:
            raise DataError(f"{path} has the column `{name}` twice; expected it once.")
    return names
