"""Exported files that take raw images, ready to predict with; see `finetune.exports.runtimes`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune.errors import ModelError
from finetune.exports.description import Description, check_description
from finetune.exports.interface import SUFFIXES, Answer
from finetune.exports.runtimes import open_file


@dataclass(frozen=True)
class Exported:
    """An exported file, ready to answer.

    Attributes:
        path: of the file.
        description: what ``model.json`` said when it was exported.
        answer: uint8 RGB ``[B, 3, H, W]`` of any one size to probabilities ``[B, C]``.
    """

    path: Path
    description: Description
    answer: Answer

    def probabilities(self, images: Tensor) -> Tensor:
        """Give ``[B, C]``, float32 on the CPU, for uint8 ``[B, 3, H, W]``."""
        return torch.from_numpy(self.answer(images.cpu().contiguous().numpy()))


def is_exported(path: Path) -> bool:
    """Tell whether a path names a file that `load_exported` opens, rather than a bundle."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def load_exported(path: Path, *, trust: bool) -> Exported:
    """Open an exported file that gives probabilities.

    Args:
        path: ``.ts``, ``.pt2``, ``.onnx``, or ``.safetensors`` with its head.
        trust: run a format that can carry code.

    Raises:
        ConfigError: a package is missing.
        ModelError: there is no such file, it is damaged or none of ours, it is a backbone alone,
            or it can carry code and is not trusted.
    """
    answer, values = open_file(path, trust=trust)
    description = check_description(values, f"model.json in {path}")
    try:
        probe = answer(torch.zeros(1, 3, 8, 8, dtype=torch.uint8).numpy())
    except Exception as error:  # noqa: BLE001 - each runtime raises what it likes on damage
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} does not answer: {reason or type(error).__name__}") from None
    if probe.shape != (1, len(description.class_names)):
        raise ModelError(
            f"{path} gives numbers of shape {list(probe.shape)} for an image, expected "
            f"[1, {len(description.class_names)}]; a backbone alone gives no classes."
        )
    return Exported(path, description, answer)
