"""Public sets of small medical images (MedMNIST), as folders of images.

Source: Yang et al. 2023, "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D
biomedical image classification", Scientific Data 10, 41.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.public.download import PublicFile
from finetune.data.public.placement import is_in_place, place_folder
from finetune.errors import DataError

Arrays = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""Images [count, side, side] and labels [count, 1] of each split."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A set of grey images of one size, and the file that holds it.

    Attributes:
        name: for messages.
        terms: its licence, and whom to cite.
        file: an ``.npz`` with ``<split>_images`` and ``<split>_labels`` of each split.
        class_names: by label.
        counts: images of each split.
        side_px: of an image.
    """

    name: str
    terms: str
    file: PublicFile
    class_names: tuple[str, ...]
    counts: Mapping[str, int]
    side_px: int

    @property
    def num_images(self) -> int:
        """Images of all splits together."""
        return sum(self.counts.values())


PNEUMONIA_MNIST = Collection(
    name="PneumoniaMNIST",
    terms="Licence CC BY 4.0; please cite Yang et al. 2023 (MedMNIST v2, Scientific Data 10, 41) "
    "and, for the images, Kermany et al. 2018 (Cell 172, 1122-1131).",
    file=PublicFile(
        url="https://zenodo.org/records/10519652/files/pneumoniamnist_224.npz?download=1",
        checksum="md5:d6a3c71de1b945ea11211b03746c1fe1",
        size_bytes=214_384_716,
    ),
    class_names=("normal", "pneumonia"),
    counts={"train": 4708, "val": 524, "test": 624},
    side_px=224,
)


def is_written(collection: Collection, root: Path) -> bool:
    """Find out whether ``root`` holds all images; False for nothing, or an empty folder.

    Raises:
        DataError: it holds something else, or some of them.
    """
    return is_in_place(
        root, is_complete=lambda folder: _is_complete(collection, folder), name=collection.name
    )


def write_collection(
    collection: Collection,
    archive: Path,
    root: Path,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the images as ``root/<split>/<class>/<index>.png``, all at once.

    Args:
        collection: what is expected; all of it is checked before anything is written.
        archive: its file, which is only read.
        root: a complete folder is left alone.
        on_progress: called with the number of images written.

    Raises:
        DataError: the file is another, or ``root`` holds something else or cannot be written.
    """

    def write(folder: Path) -> None:
        _write_images(collection, _read(collection, archive), folder, on_progress)

    place_folder(
        root,
        write,
        is_complete=lambda folder: _is_complete(collection, folder),
        name=collection.name,
    )


def _is_complete(collection: Collection, root: Path) -> bool:
    return all(
        sum(1 for name in collection.class_names for _ in (root / split / name).glob("*.png"))
        == count
        for split, count in collection.counts.items()
    )


def _read(collection: Collection, archive: Path) -> Arrays:
    try:
        # Opened here: NumPy leaves a damaged file open.
        with archive.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {
                split: (content[f"{split}_images"], content[f"{split}_labels"])
                for split in collection.counts
            }
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds
        raise DataError(f"{archive} is damaged, or not {collection.name}: {error}") from error
    for split, (images, labels) in arrays.items():
        count, side, classes = collection.counts[split], collection.side_px, collection.class_names
        _check(archive, f"{split}_images", images, (count, side, side), 255)
        _check(archive, f"{split}_labels", labels, (count, 1), len(classes) - 1)
    return arrays


def _check(
    archive: Path, name: str, array: NDArray[Any], shape: tuple[int, ...], largest: int
) -> None:
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
        got, expected = f"{array.dtype} {list(array.shape)}", f"integers {list(shape)}"
    elif array.min() < 0 or array.max() > largest:
        got, expected = f"{array.min()} to {array.max()}", f"0 to {largest}"
    else:
        return
    raise DataError(f"{archive}: {name} holds {got}; expected {expected}.")


def _write_images(
    collection: Collection, arrays: Arrays, root: Path, on_progress: Callable[[int], None]
) -> None:
    written = 0
    for split, (images, labels) in arrays.items():
        for name in collection.class_names:
            (root / split / name).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels[:, 0], strict=True)):
            path = root / split / collection.class_names[label] / f"{index:04}.png"
            # Three times as fast as the default, for files 15 % larger.
            Image.fromarray(image.astype(np.uint8)).save(path, compress_level=1)
            written += 1
            on_progress(written)
