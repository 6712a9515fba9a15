"""``split.csv``: which image stood in which split, to be read by people and given back."""

import csv
from collections.abc import Iterable
from pathlib import Path

from finetune.data.discover import Sample
from finetune.data.manifest import make_samples
from finetune.data.table import read_table
from finetune.errors import DataError

_COLUMNS = ("path", "label", "split")


def write_split(path: Path, samples: Iterable[Sample], *, label_separator: str = "|") -> None:
    """Write the columns ``path, label, split``, and ``group`` where a sample has one, as CSV.

    The file is UTF-8; the bytes of a file name that is not UTF-8 stand in it as they are.

    Args:
        path: the file.
        samples: in the order of the rows.
        label_separator: stands between the labels of one image. Where each has exactly one, they
            may hold it: ``read_split`` splits nothing then.

    Raises:
        DataError: images have several labels, and one of these holds the separator.
    """
    samples = tuple(samples)
    labels = {sample.labels for sample in samples}
    if any(len(names) != 1 for names in labels):
        for name in sorted({name for names in labels for name in names}):
            if label_separator in name:
                raise DataError(
                    f"the label `{name}` holds `{label_separator}`, which separates the labels of "
                    f"an image in {path.name}; rename it."
                )
    columns = [*_COLUMNS, *(["group"] if any(sample.group for sample in samples) else [])]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        # csv quotes only the line ends that it writes itself: both, for a name may hold either.
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(columns)
        for sample in samples:
            label = label_separator.join(sample.labels)
            row = (sample.path, label, sample.split or "", sample.group or "")
            writer.writerow(row[: len(columns)])


def read_split(path: Path, *, label_separator: str | None = None) -> tuple[Sample, ...]:
    """Read samples from a file with the columns ``path, label, split`` and perhaps ``group``.

    Paths are POSIX and relative to the data's root. An empty ``split`` is left to
    ``assign_splits``. Other columns are ignored.

    Args:
        path: the file.
        label_separator: that of ``write_split`` where images have several labels or none; None
            where each has exactly one.

    Returns:
        The samples in the order of the file.

    Raises:
        DataError: no such file, a column is missing, or a row has an unknown split, no label, a
            path that came before, or one that leaves the root.
    """
    table = read_table(path, _COLUMNS, ("group",))
    columns = table.columns
    samples = make_samples(
        columns["path"],
        columns["label"],
        columns["split"],
        columns.get("group"),
        label_separator=label_separator,
        where=table.where,
    )
    return tuple(samples)
