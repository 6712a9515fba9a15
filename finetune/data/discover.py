"""From a folder to samples and class names."""

import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.data.listing import (
    SUFFIX_LIST,
    Skipped,
    has_image_suffix,
    is_left_over,
    list_folder,
    nearest_sibling,
    walk_images,
)
from finetune.errors import DataError, did_you_mean

Split = Literal["train", "val", "test"]

SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_LAYOUT = "<class>/<image>, or train/<class>/<image> beside val and test"


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image.

    Attributes:
        path: POSIX, relative to the folder's root.
        labels: names of the classes that it shows: exactly one, or with ``task=multilabel`` any
            number, without repetition, in natural order.
        split: None where nobody has decided.
        group: what must stay on one side of a split, such as a patient; None stands alone.
    """

    path: str
    labels: tuple[str, ...]
    split: Split | None
    group: str | None = None


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds; the same for any order in which the system lists it.

    Attributes:
        root: the folder.
        class_names: in natural order; an index into it is a class's number.
        samples: sorted by path.
        skipped: sorted by path.
    """

    root: Path
    class_names: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]

    def of_split(self, split: str) -> tuple[Sample, ...]:
        """Give the samples of one split, in order."""
        return tuple(sample for sample in self.samples if sample.split == split)


def discover_folder(root: Path, *, min_classes: int = 2) -> ImageFolder:
    """List the labelled images of a folder.

    Two layouts are known: ``root/<class>/…/<image>``, and, when ``root`` holds a folder ``train``
    beside no other folders than ``val`` (or ``valid``, ``validation``) and ``test``,
    ``root/<split>/<class>/…/<image>``. Split names are case-insensitive. Hidden files, what
    macOS, Windows and Jupyter leave behind, symbolic links, files without an image suffix and
    images outside a class folder are left out; the last three are named in ``skipped``.

    Args:
        root: the folder.
        min_classes: fewer are refused; 1 is enough to measure a trained model on, not to train.

    Raises:
        DataError: no such folder, no images, fewer classes than that, a layout that is neither of
            the two, or a class that has no image to train on.
    """
    _check_root(root)
    skipped: list[Skipped] = []
    folders, images = list_folder(root, "", skipped)
    if not folders:
        raise _no_class_folders(root, images, skipped)
    split_folders = _find_split_folders(root, folders, skipped)
    samples: list[Sample] = []
    if split_folders:
        _skip_unclassed(images, skipped)
        for split, folder in split_folders.items():
            folders, images = list_folder(root, folder, skipped)
            if not folders and split == "train":
                raise _no_class_folders(root / folder, images, skipped)
            _skip_unclassed(images, skipped)
            samples += _collect(root, folders, split, skipped)
        _check_split_classes(root, split_folders, samples)
    else:
        _skip_unclassed(images, skipped)
        samples = _collect(root, folders, None, skipped)
    class_names = sorted({name for sample in samples for name in sample.labels}, key=natural_key)
    if len(class_names) < min_classes:
        raise _one_class(root, (split_folders or {}).get("train", ""), class_names[0])
    return ImageFolder(
        root=root,
        class_names=tuple(class_names),
        samples=tuple(sorted(samples, key=lambda sample: sample.path)),
        skipped=tuple(sorted(skipped, key=lambda item: item.path)),
    )


def discover_inputs(pattern: str) -> list[Path]:
    """List the images to predict.

    Args:
        pattern: a file (kept whatever its suffix), a folder (searched through by the same rules
            as a training folder), or a glob, in which ``**`` means any depth.

    Returns:
        Paths in natural order, each beginning as ``pattern`` does.

    Raises:
        DataError: nothing matches.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    if pattern and path.is_dir():
        found = [path / name for name in walk_images(path, "", [])]
        if not found:
            raise DataError(f"{pattern} holds no image; expected files ending in {SUFFIX_LIST}.")
    elif glob.has_magic(pattern):
        found = _glob_images(pattern)
    else:
        raise DataError(f"{pattern}: no such file or folder.{nearest_sibling(path)}")
    return sorted(found, key=lambda item: natural_key(item.as_posix()))


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sort key that puts ``2`` before ``10``; different texts have different keys."""
    keys = []
    for piece in re.findall(r"[0-9]+|[^0-9]+", text):
        if "0" <= piece[0] <= "9":
            digits = piece.lstrip("0")
            keys.append((0, len(digits), digits))
        else:
            keys.append((1, 0, piece.casefold()))
    return tuple(keys), text


def _check_root(root: Path) -> None:
    if not root.exists():
        raise DataError(f"{root}: no such folder.{nearest_sibling(root)}")
    if not root.is_dir():
        raise DataError(f"{root} is a file; expected a folder that holds {_LAYOUT}.")


def _collect(
    root: Path, class_folders: Iterable[str], split: Split | None, skipped: list[Skipped]
) -> list[Sample]:
    samples: list[Sample] = []
    for folder in class_folders:
        class_name = folder.rpartition("/")[2]
        found = [Sample(path, (class_name,), split) for path in walk_images(root, folder, skipped)]
        if not found and split in (None, "train"):
            example = _say_skipped(skipped, f"{folder}/")
            raise DataError(
                f"{root / folder} holds no image{example}; each class needs at least one to train "
                f"on.\nPut images ({SUFFIX_LIST}) into it, or remove the folder."
            )
        samples += found
    return samples


def _skip_unclassed(images: Iterable[str], skipped: list[Skipped]) -> None:
    skipped.extend(Skipped(path, "image outside a class folder") for path in images)


def _find_split_folders(
    root: Path, folders: list[str], skipped: Iterable[Skipped]
) -> dict[Split, str] | None:
    """Map each split to its folder, or return None where the folders are classes."""
    split_folders: dict[Split, str] = {}
    others = []
    for name in sorted(folders, key=natural_key):
        split = SPLIT_WORDS.get(name.lower())
        if split is None:
            others.append(name)
        elif split in split_folders:
            raise DataError(
                f"{root}: the folders {split_folders[split]} and {name} both mean {split}; "
                "expected one of them."
            )
        else:
            split_folders[split] = name
    if not split_folders:
        return None
    if others:
        raise DataError(
            f"{root} mixes folders named like splits ({', '.join(split_folders.values())}) with "
            f"others ({_shorten(others)}); expected {_LAYOUT}."
        )
    if "train" not in split_folders:
        raise DataError(
            f"{root} has {' and '.join(split_folders.values())} but no train folder"
            f"{_say_skipped(skipped, 'train')}; expected {root}/train/<class>/<image>."
        )
    return split_folders


def _check_split_classes(
    root: Path, split_folders: Mapping[Split, str], samples: Iterable[Sample]
) -> None:
    """Refuse a class that only val or test has; one that they lack is fine."""
    classes: dict[Split, set[str]] = {split: set() for split in split_folders}
    for sample in samples:
        if sample.split is not None:
            classes[sample.split].update(sample.labels)
    for split, folder in split_folders.items():
        for name in sorted(classes[split] - classes["train"], key=natural_key):
            raise DataError(
                f"{root / folder} has the class {name}, which {root / split_folders['train']} "
                f"lacks; expected some of {_shorten(sorted(classes['train'], key=natural_key))}."
                f"{did_you_mean(name, classes['train'])}"
            )


def _no_class_folders(folder: Path, images: list[str], skipped: Iterable[Skipped]) -> DataError:
    if images:
        got = f"{folder} has {len(images)} images but no class folders"
    elif example := _say_skipped(skipped):
        got = f"{folder} has no class folders{example}"
    else:
        got = f"{folder} is empty"
    return DataError(f"{got}.\nPut each class in its own folder: {folder}/<class>/<image>.")


def _say_skipped(skipped: Iterable[Skipped], prefix: str = "") -> str:
    """Name the first thing that was left out, for a message that something is missing."""
    return next(
        (f" ({item.path}: {item.reason})" for item in skipped if item.path.startswith(prefix)), ""
    )


def _one_class(root: Path, parent: str, class_name: str) -> DataError:
    folder = root / parent / class_name
    message = (
        f'{root / parent} has one class folder, "{class_name}"; classification needs at least two.'
    )
    inner, _ = list_folder(folder, "", [])
    if len(inner) > 1:
        return DataError(f"{message} Did you mean `{folder}`?")
    return DataError(
        f"{message}\nPut each class in its own folder: {root / parent}/<class>/<image>."
    )


def _glob_images(pattern: str) -> list[Path]:
    path = Path(pattern)
    depth = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
    base = Path(*path.parts[:depth])
    try:
        # Unlike glob.glob, this does not follow symbolic links in `**`.
        found = [
            match
            for match in base.glob(str(Path(*path.parts[depth:])))
            if has_image_suffix(match.name)
            and not any(map(is_left_over, match.relative_to(base).parts))
            and match.is_file()
        ]
    except ValueError as error:
        raise DataError(f"{pattern}: not a glob: {error}. Write **/*.jpg for any depth.") from error
    if not found:
        raise DataError(
            f"{pattern}: no image matches; expected files ending in {SUFFIX_LIST}. "
            "Quote the pattern so that the shell leaves it alone, and use **/ for any depth."
        )
    return found


def _shorten(names: list[str], limit: int = 10) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
