"""A manifest: one table that names each image with its label, and perhaps its split and group."""

import os
import posixpath
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from finetune.data.discover import SPLIT_WORDS, ImageFolder, Sample, Split, natural_key
from finetune.data.listing import nearest_sibling
from finetune.data.table import Table, read_table
from finetune.errors import DataError, did_you_mean


def read_manifest(
    path: Path,
    *,
    root: Path | None,
    path_column: str,
    label_column: str,
    split_column: str | None,
    group_column: str | None,
    label_separator: str | None,
    min_classes: int = 2,
) -> ImageFolder:
    r"""Read labelled images from a table with one row for each.

    Spaces around a label, a split or a group do not count. Whether the files exist is not looked
    at.

    Args:
        path: ``.parquet``, or text that ``read_table`` knows.
        root: the folder that the paths begin in; None for the manifest's own. Absolute paths may
            lie inside it. Where no path has a ``/``, ``\`` separates folders, as in Windows.
        path_column: its name.
        label_column: its name.
        split_column: its name; None takes ``split`` where there is one. Cells are split words as
            of folders (``train``, ``val``, ``valid``, ``validation``, ``test``), or all empty.
        group_column: its name; None takes ``group`` where there is one. An image with an empty
            cell stands alone.
        label_separator: stands between the labels of one image, which may then have none at all;
            None where each has exactly one.
        min_classes: fewer are refused; 1 is enough to measure a trained model on, not to train.

    Returns:
        The samples sorted by path, and the classes in natural order; nothing is skipped.

    Raises:
        DataError: the table or a row is not as described, a path comes twice, there are fewer
            classes than that, or, with splits, a class has no image to train on.
    """
    root = path.parent if root is None else root
    if not root.is_dir():
        raise DataError(f"{root}: no such folder.{nearest_sibling(root)}")
    required = [path_column, label_column, split_column, group_column]
    table = read_table(path, [name for name in required if name is not None], ("split", "group"))
    columns = {name: [cell.strip() for cell in cells] for name, cells in table.columns.items()}
    samples = make_samples(
        _relative_to(root, table, path_column),
        columns[label_column],
        columns.get(split_column or "split"),
        columns.get(group_column or "group"),
        label_separator=label_separator,
        where=table.where,
    )
    samples.sort(key=lambda sample: sample.path)
    _check_splits(path, samples)
    labels = {sample.labels for sample in samples}
    class_names = sorted({name for names in labels for name in names}, key=natural_key)
    if len(class_names) < min_classes:
        got = ", ".join(f'"{name}"' for name in class_names) or "none"
        raise DataError(
            f"{path}: the column `{label_column}` has {len(class_names)} classes ({got}); "
            f"classification needs at least {min_classes}."
        )
    return ImageFolder(root, tuple(class_names), tuple(samples), skipped=())


def make_samples(
    paths: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str] | None,
    groups: Sequence[str] | None,
    *,
    label_separator: str | None,
    where: Callable[[int], str],
) -> list[Sample]:
    """Make one sample of each row.

    Args:
        paths: POSIX, relative to the data's root.
        labels: joined by ``label_separator``.
        splits: split words; empty where nobody has decided.
        groups: empty where the image stands alone.
        label_separator: as for ``read_manifest``.
        where: gives the place of a row, for a message.

    Raises:
        DataError: a path is no file inside the root, or came before, a label is missing, or a
            split is unknown.
    """
    tidy = [_tidy_path(path, where, row) for row, path in enumerate(paths)]
    if len(set(tidy)) < len(tidy):
        raise _repeated(tidy, where)
    # A million rows have few different labels and splits.
    known_labels: dict[str, tuple[str, ...]] = {}
    known_splits: dict[str, Split | None] = {"": None}
    samples = []
    for row, path in enumerate(tidy):
        label = labels[row]
        if label not in known_labels:
            known_labels[label] = _parse_labels(label, label_separator, path, where(row))
        split = splits[row] if splits else ""
        if split not in known_splits:
            known_splits[split] = _parse_split(split, where(row))
        group = groups[row] if groups else ""
        samples.append(Sample(path, known_labels[label], known_splits[split], group or None))
    return samples


def _relative_to(root: Path, table: Table, column: str) -> list[str]:
    """Write paths as POSIX, and those that begin in ``root`` relative to it."""
    paths = table.columns[column]
    if not any("/" in path for path in paths):
        paths = [path.replace("\\", "/") for path in paths]
    # A link to the data may be in the manifest as it is or as what it leads to.
    roots = (Path(os.path.abspath(root)).as_posix(), root.resolve().as_posix())  # noqa: PTH100
    prefixes = tuple(item.rstrip("/") + "/" for item in roots)
    return [_cut(path, prefixes) if path.startswith(prefixes) else path for path in paths]


def _cut(path: str, prefixes: Iterable[str]) -> str:
    return next(path[len(prefix) :] for prefix in prefixes if path.startswith(prefix))


def _tidy_path(path: str, where: Callable[[int], str], row: int) -> str:
    tidy = posixpath.normpath(path)
    is_absolute = tidy[0] == "/" or (tidy[1:3] in (":/", ":\\") and tidy[0].isalpha())
    if is_absolute or tidy in (".", "..") or tidy.startswith("../") or "\0" in path:
        if not path:
            raise DataError(f"{where(row)}: the path is empty; expected that of an image.")
        raise DataError(
            f"{where(row)}: `{path}` leaves the data's root; expected a path inside it. "
            "dataset.root is the folder that holds all images."
        )
    return tidy


def _parse_labels(text: str, separator: str | None, path: str, where: str) -> tuple[str, ...]:
    if separator is not None:
        names = {name.strip() for name in text.split(separator)} - {""}
        return tuple(sorted(names, key=natural_key))
    if not text:
        raise DataError(f"{where}: `{path}` has no label; expected the name of its class.")
    return (text,)


def _parse_split(word: str, where: str) -> Split:
    split = SPLIT_WORDS.get(word.lower())
    if split is None:
        raise DataError(
            f"{where}: got split `{word}`, expected one of {', '.join(SPLIT_WORDS)}."
            f"{did_you_mean(word, SPLIT_WORDS)}"
        )
    return split


def _repeated(paths: Iterable[str], where: Callable[[int], str]) -> DataError:
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        if path in first:
            break
        first[path] = row
    return DataError(
        f"{where(row)}: `{path}` came before, at {where(first[path])}; expected each path once."
    )


def _check_splits(path: Path, samples: Iterable[Sample]) -> None:
    """Refuse splits that only some images have, and a class that train lacks."""
    example: dict[Split | None, str] = {}
    classes: dict[Split | None, set[tuple[str, ...]]] = {}
    for sample in samples:
        example.setdefault(sample.split, sample.path)
        classes.setdefault(sample.split, set()).add(sample.labels)
    if set(example) == {None}:
        return
    if None in example:
        raise DataError(
            f"{path}: some images have a split, and some, such as `{example[None]}`, have none; "
            "expected all or none."
        )
    trained = {name for labels in classes.get("train", ()) for name in labels}
    for split, labels_of in classes.items():
        names = {name for labels in labels_of for name in labels}
        for name in sorted(names - trained, key=natural_key):
            raise DataError(
                f"{path}: {split} has the class {name}, which train lacks; each class needs an "
                f"image to train on.{did_you_mean(name, trained)}"
            )
