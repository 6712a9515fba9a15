"""Features of images as Parquet or NumPy, written as they come and seen only when whole.

Shapes: ``N`` images, ``F`` features.

``.npy`` holds float32 ``[N, F]``, a row for each row of the predictions, in the same order; an
image without a prediction has a row of NaN. ``.parquet`` has the columns ``path`` and
``features``, a list of ``F`` float32, null for an image without a prediction.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from finetune.prediction.columns import escape_undecodable
from finetune.prediction.outputs import check_format, replacing_output
from finetune.prediction.predict import Prediction

FORMATS = (".npy", ".parquet")
KEY = "output_features"

# As in `finetune.prediction.writers`: a Parquet row group is held in memory until it is full.
_MAX_ROWS_PER_GROUP = 10_000
_MAX_NUMBERS_PER_GROUP = 1_000_000


@contextmanager
def open_features(path: Path, num_features: int) -> Iterator["NpyWriter | ParquetFeatures"]:
    """Open a file of features; the suffix of ``path`` chooses its format.

    As with a table of predictions, it replaces ``path`` when the block ends, and vanishes if the
    block raises.

    Args:
        path: ``.npy`` or ``.parquet``.
        num_features: ``F``.

    Raises:
        ConfigError: another suffix, or a place where no file can be written.
    """
    suffix = check_format(KEY, path, FORMATS)
    with replacing_output(path, KEY) as stream:
        writer = (NpyWriter if suffix == ".npy" else ParquetFeatures)(stream, num_features)
        try:
            yield writer
        finally:
            writer.close()


class NpyWriter:
    """A NumPy file that grows by a row at a time; its header is corrected at the end."""

    def __init__(self, stream: IO[bytes], num_features: int) -> None:
        self._stream = stream
        self._shape = (0, num_features)
        self._missing = np.full(num_features, np.nan, np.float32)
        stream.write(npy_header(self._shape))

    def write(self, prediction: Prediction) -> None:
        """Add one row."""
        features = prediction.features
        row = self._missing if features is None else features
        self._stream.write(np.ascontiguousarray(row, dtype="<f4").tobytes())
        self._shape = (self._shape[0] + 1, self._shape[1])

    def close(self) -> None:
        """Write the true number of rows into the header."""
        self._stream.seek(0)
        self._stream.write(npy_header(self._shape))
        self._stream.seek(0, 2)


class ParquetFeatures:
    """Parquet with a list of fixed length in each row."""

    def __init__(self, stream: IO[bytes], num_features: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("features", pa.list_(pa.float32(), num_features)),
            ]
        )
        self._file = pq.ParquetWriter(stream, self._schema)
        self._make_batch = pa.record_batch
        self._rows: list[tuple[str, Any]] = []
        self._rows_per_group = max(
            1, min(_MAX_ROWS_PER_GROUP, _MAX_NUMBERS_PER_GROUP // num_features)
        )

    def write(self, prediction: Prediction) -> None:
        """Add one row."""
        self._rows.append((escape_undecodable(str(prediction.path)), prediction.features))
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


def npy_header(shape: tuple[int, int]) -> bytes:
    """Give the header of a float32 file in C order; its length is the same for any ``N``.

    Source: numpy.lib.format, which leaves room for the first dimension to grow.
    """
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()
