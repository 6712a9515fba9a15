"""A small real data set that needs no network: handwritten digits that come with scikit-learn."""

from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.public.placement import place_folder

NUM_IMAGES = 1797


def write_digits(root: Path) -> None:
    """Write 1,797 scans of 8 x 8 pixels as ``root/<0 to 9>/<number>.png``, unless they are there.

    Raises:
        DataError: ``root`` holds something else, or cannot be written.

    Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI, of which
    scikit-learn carries the test set.
    """
    place_folder(root, _write_images, is_complete=_is_complete, name="digits")


def _write_images(root: Path) -> None:
    # Importing scikit-learn takes longer than everything else here.
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    # Ink is 16 and paper 0; a half is rounded to the even number.
    pixels = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for digit in range(10):
        (root / str(digit)).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(root / str(label) / f"{index:04}.png")


def _is_complete(root: Path) -> bool:
    return sum(1 for _ in root.glob("[0-9]/*.png")) == NUM_IMAGES
