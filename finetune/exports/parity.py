"""Whether an exported file answers like the model, image by image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.decode import decode_image
from finetune.errors import DataError, ExportError, ImageError
from finetune.exports.bundle import Model
from finetune.models.answers import decide


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the model.

    Attributes:
        images: how many were compared.
        same_labels: on how many both give the same class, or the same labels.
        largest_difference: of any probability, in [0, 1].
        tolerance: what is allowed.
        worst_image: where the largest difference is.
    """

    images: int
    same_labels: int
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
    known: Mapping[Path, Tensor] | None = None,
) -> Parity:
    """Feed raw images to both.

    Args:
        exported: uint8 ``[1, 3, H, W]`` to probabilities ``[1, C]``.
        model: the bundle's.
        paths: readable images, at least one.
        tolerance: largest allowed difference of a probability.
        known: the model's probabilities ``[C]`` of files that it has answered just now, which it
            is not asked again.

    Raises:
        DataError: an image cannot be read any more.
        ExportError: they differ by more than the tolerance (the message names the image with the
            largest difference), or the exported file gives no probabilities at all.
    """
    task = model.description.task
    differences: list[float] = []
    same = 0
    for path in paths:
        try:
            image = decode_image(path, max_megapixels=model.description.max_megapixels)
        except ImageError as error:
            raise DataError(f"{path}: {error}.") from None
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if known is not None and path in known:
            ours = known[path].unsqueeze(0)
        else:
            ours = model.probabilities(model.preprocess.resize(pixels))
        theirs = _answer(exported, pixels.unsqueeze(0), path)
        if theirs.shape != ours.shape:
            raise ExportError(
                f"The exported file does not answer like the model: on {path} its answer has the "
                f"shape {list(theirs.shape)}, expected {list(ours.shape)}."
            )
        differences.append(float((theirs - ours).abs().max()))
        same += int(torch.equal(decide(theirs, task), decide(ours, task)))
    worst = int(np.argmax(differences))
    parity = Parity(len(paths), same, differences[worst], tolerance, paths[worst].name)
    if not differences[worst] <= tolerance:  # also when it is NaN
        raise ExportError(
            f"The exported file does not answer like the model: its probabilities differ by up to "
            f"{differences[worst]:.2g}, {tolerance:.2g} is allowed. Most on {paths[worst]}."
        )
    return parity


def _answer(exported: Callable[[Tensor], Tensor], images: Tensor, path: Path) -> Tensor:
    try:
        with torch.inference_mode():
            return exported(images).cpu()
    except RuntimeError as error:  # torch names no narrower type for what a program of its raises
        reason = str(error).strip().rsplit("\n", 1)[-1]
        raise ExportError(f"The exported file fails on {path}: {reason}") from error
