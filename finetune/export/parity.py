"""Whether an exported file answers like the model, image by image."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.decode import decode_image
from finetune.errors import ExportError
from finetune.export.bundle import Model


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the model.

    Attributes:
        images: how many were compared.
        same_top1: on how many both name the same class.
        largest_difference: of any probability, in [0, 1].
        tolerance: what is allowed.
        worst_image: where the largest difference is.
    """

    images: int
    same_top1: int
    largest_difference: float
    tolerance: float
    worst_image: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compare(
    exported: Callable[[Tensor], Tensor],
    model: Model,
    paths: Sequence[Path],
    *,
    tolerance: float,
) -> Parity:
    """Feed raw images to both.

    Args:
        exported: uint8 ``[1, 3, H, W]`` to probabilities ``[1, C]``.
        model: the bundle's.
        paths: readable images, at least one.
        tolerance: largest allowed difference of a probability.

    Raises:
        ExportError: they differ by more than the tolerance, or name another class; the message
            names the image with the largest difference.
    """
    differences: list[float] = []
    same = 0
    for path in paths:
        image = decode_image(path, max_megapixels=model.description.max_megapixels)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with torch.inference_mode():
            theirs = exported(pixels.unsqueeze(0)).cpu()
        ours = model.probabilities(model.preprocess.resize(pixels))
        differences.append(float((theirs - ours).abs().max()))
        same += int(theirs.argmax() == ours.argmax())
    worst = int(np.argmax(differences))
    parity = Parity(len(paths), same, differences[worst], tolerance, paths[worst].name)
    if not differences[worst] <= tolerance:  # also when it is NaN
        raise ExportError(
            f"The exported file does not answer like the model: its probabilities differ by up to "
            f"{differences[worst]:.2g}, {tolerance:.2g} is allowed. Most on {paths[worst]}."
        )
    return parity
