"""Seeded, stratified splitting that neither the machine nor the listing order changes."""

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from finetune.data.discover import Sample, Split
from finetune.errors import DataError, did_you_mean

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_COLUMNS = ("path", "label", "split")


def assign_splits(
    samples: Iterable[Sample],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> tuple[Sample, ...]:
    """Give every sample a split.

    Samples are ordered by ``sha256(seed, path)``; the first of each class go to test, the next
    to val, the rest to train. So a sample's place depends on the seed and on the paths of its
    class alone.

    Of ``n`` images of a class, ``test_fraction * n`` rounded to the nearest (a half upwards) go
    to test; likewise for val, which gets at least one of two or more. Train keeps at least one,
    at the expense of test first, of val next.

    Samples that come with a split keep it: with train and val, nothing moves; with train and
    test, val is taken out of train; with train alone, both are.

    Args:
        samples: in any order; either all or none with a split.
        val_fraction: of each class, in [0, 1); 0 makes no val.
        test_fraction: of each class, in [0, 1), with ``val_fraction`` below 1; 0 makes no test.
        seed: another seed gives another split.
        groups: from ``Sample.path`` to the name of what must stay together, such as a patient;
            a path that is not in it stands alone. Groups are ordered by ``sha256(seed, name)``,
            and each goes as a whole where it fills more than it overfills, so the fractions hold
            only as well as the groups allow.

    Returns:
        The samples sorted by path, each with a split.

    Raises:
        DataError: a fraction is out of range, some samples have a split and some have none, no
            sample is left to train on, or a group spans splits that came with the samples.
    """
    _check_fractions(val_fraction, test_fraction)
    ordered = sorted(samples, key=lambda sample: sample.path)
    given = {sample.split for sample in ordered}
    if given - {None}:
        _check_given(ordered, given)
    if "val" not in given:
        movable = [sample for sample in ordered if sample.split != "test"]
        targets: dict[Split, float] = {"val": val_fraction}
        if "test" not in given:
            targets["test"] = test_fraction
        chosen = _choose(_make_units(movable, groups or {}, seed), targets)
        ordered = [
            replace(sample, split=chosen.get(sample.path, sample.split)) for sample in ordered
        ]
    _check_groups(ordered, groups or {})
    return tuple(ordered)


def write_split(
    path: Path, samples: Iterable[Sample], *, groups: Mapping[str, str] | None = None
) -> None:
    """Write the columns ``path, label, split``, and ``group`` where groups are given, as CSV.

    The file is UTF-8; the bytes of a file name that is not UTF-8 stand in it as they are.
    """
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        # csv quotes only the line ends that it writes itself: both, for a name may hold either.
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(_COLUMNS if groups is None else (*_COLUMNS, "group"))
        for sample in samples:
            row = [sample.path, sample.class_name, sample.split or ""]
            if groups is not None:
                row.append(groups.get(sample.path, ""))
            writer.writerow(row)


def read_split(path: Path) -> tuple[Sample, ...]:
    """Read samples from a CSV file with the columns ``path, label`` and ``split``.

    Paths are POSIX and relative to the data's root. An empty ``split`` is left to
    ``assign_splits``. Other columns are ignored.

    Returns:
        The samples in the order of the file.

    Raises:
        DataError: no such file, a column is missing, or a row has an unknown split, no label, a
            path that came before, or one that leaves the root.
    """
    samples: dict[str, Sample] = {}
    for line, row in _read_rows(path):
        sample = _to_sample(row, where=f"{path}, line {line}")
        if sample.path in samples:
            raise DataError(
                f"{path}, line {line}: `{sample.path}` came before; expected each path once."
            )
        samples[sample.path] = sample
    if not samples:
        raise DataError(f"{path} has no rows; expected one per image: {', '.join(_COLUMNS)}.")
    return tuple(samples.values())


def read_groups(path: Path) -> dict[str, str]:
    """Read the column ``group`` of a split file, for ``assign_splits``; empty where it is empty.

    Raises:
        DataError: no such file, or a column is missing.
    """
    rows = _read_rows(path, columns=("path", "group"))
    return {str(PurePosixPath(row["path"])): row["group"] for _, row in rows if row["group"]}


@dataclass(frozen=True, slots=True)
class _Unit:
    """Samples that go to one split together; ``sizes`` counts them per class."""

    paths: tuple[str, ...]
    sizes: Counter[str]


def _make_units(samples: Iterable[Sample], groups: Mapping[str, str], seed: int) -> list[_Unit]:
    """Put samples into units, and these into an order that depends on the seed and names alone."""
    members: dict[tuple[str, bool], list[Sample]] = {}
    for sample in samples:
        name = groups.get(sample.path)
        key = (sample.path, False) if name is None else (name, True)
        members.setdefault(key, []).append(sample)
    order = sorted(members, key=lambda key: (_digest(seed, key[0]), key))
    return [
        _Unit(
            tuple(sample.path for sample in members[key]),
            Counter(sample.class_name for sample in members[key]),
        )
        for key in order
    ]


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


def _choose(units: Sequence[_Unit], fractions: Mapping[Split, float]) -> dict[str, Split]:
    """Map the path of every unit's samples to a split."""
    images: Counter[str] = Counter()
    # Units of a class that train still has, or may still get.
    left: Counter[str] = Counter()
    for unit in units:
        images.update(unit.sizes)
        left.update(unit.sizes.keys())
    needs: dict[Split, Counter[str]] = {"test": Counter(), "val": Counter()}
    for name, count in images.items():
        needs["test"][name], needs["val"][name] = _count_targets(
            count, left[name], fractions.get("test", 0), fractions["val"]
        )
    wanted = {split: {name for name in need if need[name]} for split, need in needs.items()}
    places: dict[int, Split] = {}

    def move(index: int, split: Split) -> None:
        places[index] = split
        needs[split].subtract(units[index].sizes)
        left.subtract(units[index].sizes.keys())
        wanted[split].difference_update(units[index].sizes)

    for index, unit in enumerate(units):
        for split, need in needs.items():
            filled = sum(min(size, max(need[name], 0)) for name, size in unit.sizes.items())
            fits = 2 * filled > sum(unit.sizes.values())
            if fits and all(left[name] > 1 for name in unit.sizes):
                move(index, split)
                break
    # Groups larger than what a class needs have passed it by: the smallest is the least wrong.
    for split in ("val", "test"):
        for name in sorted(wanted[split]):
            candidates = [
                index
                for index, unit in enumerate(units)
                if index not in places
                and name in unit.sizes
                and min(left[k] for k in unit.sizes) > 1
            ]
            if candidates and name in wanted[split]:
                move(min(candidates, key=lambda i: (sum(units[i].sizes.values()), i)), split)
    return {
        path: places.get(index, "train") for index, unit in enumerate(units) for path in unit.paths
    }


def _count_targets(
    images: int, units: int, test_fraction: float, val_fraction: float
) -> tuple[int, int]:
    """Return how many of a class's images go to test and to val."""
    test = math.floor(images * test_fraction + 0.5)
    val = math.floor(images * val_fraction + 0.5)
    if val_fraction > 0:
        val = max(val, 1)
    val = min(val, images - 1) if units > 1 else 0
    test = min(test, images - 1 - val) if units > 1 + (val > 0) else 0
    return test, val


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for key, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise DataError(f"{key}: got {value}, expected a number in [0, 1).")
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"val_fraction + test_fraction: got {val_fraction} + {test_fraction}, expected less "
            "than 1; the rest is what is trained on."
        )


def _check_given(samples: Iterable[Sample], given: set[Split | None]) -> None:
    if None in given:
        without = next(sample.path for sample in samples if sample.split is None)
        raise DataError(
            f"some samples have a split, and some, such as `{without}`, have none; expected all "
            "or none."
        )
    if "train" not in given:
        raise DataError(
            f"got samples for {', '.join(map(str, given))} only, expected some to train on."
        )


def _check_groups(samples: Iterable[Sample], groups: Mapping[str, str]) -> None:
    first: dict[str, Sample] = {}
    for sample in samples:
        name = groups.get(sample.path)
        if name is not None and first.setdefault(name, sample).split != sample.split:
            other = first[name]
            raise DataError(
                f"group `{name}` spans splits: {other.path} is in {other.split}, {sample.path} in "
                f"{sample.split}; expected all of a group in one."
            )


def _read_rows(
    path: Path, columns: Sequence[str] = _COLUMNS
) -> Iterable[tuple[int, dict[str, str]]]:
    """Yield line number and row of a CSV file that has at least ``columns``."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or ()
            for column in columns:
                if column not in header:
                    raise DataError(
                        f"{path} has no column `{column}`; got {', '.join(header) or 'none'}, "
                        f"expected {', '.join(columns)}.{did_you_mean(column, header)}"
                    )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: expected {len(header)} cells, as in the "
                        "header. Quote a cell that holds a comma."
                    )
                yield reader.line_num, row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}.") from error


def _to_sample(row: Mapping[str, str], where: str) -> Sample:
    path, label, word = row["path"], row["label"], row["split"]
    if not path or not label:
        raise DataError(f"{where}: got path `{path}` and label `{label}`, expected both.")
    pure = PurePosixPath(path)
    if pure.is_absolute() or PureWindowsPath(path).is_absolute() or ".." in pure.parts:
        raise DataError(
            f"{where}: `{path}` leaves the data's root; expected a path relative to it."
        )
    split = next((split for split in _SPLITS if split == word), None)
    if word and split is None:
        raise DataError(
            f"{where}: got split `{word}`, expected one of {', '.join(_SPLITS)}."
            f"{did_you_mean(word, _SPLITS)}"
        )
    return Sample(str(pure), label, split)
