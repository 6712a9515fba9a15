"""What an audit found, kept between runs: a file that did not change is not decoded again.

One Parquet file per data set, a row per image. A row is trusted only while size and modification
time are what they were. What was refused has no row: the package that it needs, or the right to
read it, may be there the next time, and neither shows in the file.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.cache import is_own_file, open_cache_folder
from finetune.data.auditing.examine import Report
from finetune.data.auditing.fingerprint import SIZE
from finetune.errors import RunError
from finetune.run import replacing

VERSION = 1
"""To be raised when the same file would get another report."""

# A change within the tick of the file system's clock leaves the modification time as it is; FAT's
# tick, the longest, is two seconds.
_SETTLED_NS = 2_000_000_000
_SCHEMA = pa.schema(
    [
        # Names need not be UTF-8.
        ("path", pa.binary()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("digest", pa.binary(32)),
        ("format", pa.dictionary(pa.int32(), pa.string())),
        ("mode", pa.dictionary(pa.int32(), pa.string())),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("is_constant", pa.bool_()),
        ("fingerprint", pa.binary()),
    ]
)
_REPORTED = _SCHEMA.names[3:]


class AuditCache:
    """The reports of earlier audits of one folder.

    Attributes:
        notes: what went wrong with the cache itself; the audit goes on without it.
    """

    def __init__(self, folder: Path | None, root: Path, *, max_megapixels: float) -> None:
        """Read what is there.

        Args:
            folder: where caches lie; made where there is none. None keeps nothing.
            root: of the data set; each has a file of its own.
            max_megapixels: reports made under another limit are not used.
        """
        self.notes: list[str] = []
        self._root = root
        self._key = json.dumps([VERSION, PIL.__version__, max_megapixels]).encode()
        self._file: Path | None = None
        self._rows: dict[str, tuple[int, int, Report]] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self._is_changed = False
        if folder is not None:
            try:
                name = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()
                self._file = open_cache_folder(folder) / f"{name}.parquet"
            except RunError as error:
                self.notes.append(f"Nothing is kept for the next time: {error}")
            else:
                self._rows = _read(self._file, self._key)

    def get(self, path: str) -> Report | None:
        """Return the report of a file that is as it was, or None.

        Args:
            path: POSIX, relative to the root.
        """
        try:
            status = (self._root / path).stat()
        except OSError:
            return None
        stamp = (status.st_size, status.st_mtime_ns)
        if time.time_ns() - status.st_mtime_ns >= _SETTLED_NS:
            self._stamps[path] = stamp
        row = self._rows.get(path)
        return row[2] if row is not None and row[:2] == stamp else None

    def put(self, path: str, report: Report) -> None:
        """Keep the report of a file that `get` was asked for before it was examined."""
        if path in self._stamps and report.trouble is None:
            self._rows[path] = (*self._stamps[path], report)
            self._is_changed = True

    def save(self) -> None:
        """Write what is new, whole or not at all; never raises for a disk that does not take it."""
        if self._file is None or not self._is_changed:
            return
        try:
            with replacing(self._file) as temporary:
                pq.write_table(
                    _to_table(self._rows, self._key), temporary, write_page_checksum=True
                )
        except OSError as error:
            self.notes.append(f"Nothing is kept for the next time: {self._file}: {error.strerror}.")
        self._is_changed = False


def _to_table(rows: dict[str, tuple[int, int, Report]], key: bytes) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "path": [os.fsencode(path) for path in rows],
        "size": [size for size, _, _ in rows.values()],
        "mtime_ns": [mtime_ns for _, mtime_ns, _ in rows.values()],
    }
    for name in _REPORTED:
        columns[name] = [getattr(report, name) for _, _, report in rows.values()]
    return pa.table(columns, schema=_SCHEMA.with_metadata({"audit": key}))


def _read(file: Path, key: bytes) -> dict[str, tuple[int, int, Report]]:
    """Read all rows; none where the file is missing, damaged, another's, or of other rules."""
    try:
        if not is_own_file(file):
            return {}
        table = pq.read_table(file, page_checksum_verification=True)
        if not table.schema.equals(_SCHEMA) or (table.schema.metadata or {}).get(b"audit") != key:
            return {}
        columns = [table.column(name).to_pylist() for name in _SCHEMA.names]
        rows = {
            os.fsdecode(path): (size, mtime_ns, Report(**dict(zip(_REPORTED, values, strict=True))))
            for path, size, mtime_ns, *values in zip(*columns, strict=True)
        }
    # What is damaged raises ArrowException, what is missing OSError, text that is none ValueError.
    except (pa.ArrowException, OSError, ValueError):
        return {}
    sizes = {len(report.fingerprint) for _, _, report in rows.values()}
    return rows if sizes <= {0, 2 * SIZE} else {}
