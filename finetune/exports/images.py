"""Images that a program has already: files, PIL images, arrays and tensors, all to tensors."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from finetune.data.decode import decode_image, image_to_rgb
from finetune.errors import DataError, ImageError

ImageLike = str | os.PathLike[str] | npt.NDArray[np.uint8] | PIL.Image.Image | Tensor


def as_tensor(image: ImageLike, max_megapixels: float) -> Tensor:
    """Give uint8 ``[3, H, W]``, RGB, on the CPU.

    Args:
        image: a path; a PIL image; a uint8 array ``[H, W, 3]``; a uint8 tensor ``[3, H, W]``.
        max_megapixels: larger files are refused.

    Raises:
        DataError: the file cannot be read, or the image has another shape or type.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape or image.dtype != torch.uint8:
            got = f"{list(image.shape)} {image.dtype}"
            raise DataError(f"predict: got a tensor {got}, expected uint8 [3, H, W].")
        return image.cpu()
    if isinstance(image, np.ndarray):
        array = image
    elif isinstance(image, PIL.Image.Image):
        # The same rules for modes, alpha and orientation as for files.
        array = image_to_rgb(image)
    else:
        try:
            array = decode_image(Path(image), max_megapixels=max_megapixels)
        except (ImageError, OSError) as error:
            raise DataError(f"{image} cannot be read: {error}") from None
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape or array.dtype != np.uint8:
        got = f"{list(array.shape)} {array.dtype}"
        raise DataError(f"predict: got an array {got}, expected uint8 [H, W, 3].")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
