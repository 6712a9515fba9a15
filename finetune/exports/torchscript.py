"""TorchScript: one file that needs torch alone: raw images in, probabilities out.

torch deprecates TorchScript but still ships it, and C++ and mobile programs read nothing else;
every call of ``torch.jit`` is in this module.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.jit.frontend import FrontendError

from finetune.data.preprocess import Preprocess
from finetune.errors import ExportError
from finetune.exports.bundle import Model
from finetune.exports.description import JSON_NAME
from finetune.models.answers import Task
from finetune.models.classifier import Classifier


class Deployed(nn.Module):
    """Raw images to probabilities.

    Args:
        preprocess: resize, crop, normalise.
        classifier: the network, scripted or traced.
        task: what its logits mean.
    """

    def __init__(self, preprocess: Preprocess, classifier: nn.Module, task: Task) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.classifier = classifier
        self.is_multilabel = task == "multilabel"

    def forward(self, images: Tensor) -> Tensor:
        """Give probabilities ``[B, C]``.

        Args:
            images: uint8 RGB ``[B, 3, H, W]`` or ``[3, H, W]`` of any size.
        """
        logits: Tensor = self.classifier(self.preprocess(images))
        # Not `to_probabilities`: torch cannot script its type of `task`.
        return torch.sigmoid(logits) if self.is_multilabel else torch.softmax(logits, dim=1)


def save_torchscript(model: Model, path: Path) -> None:
    """Write the model as TorchScript, with its description inside as ``model.json``.

    A network that cannot be scripted is traced; preprocessing is always scripted, since it must
    take images of any size.

    Raises:
        ExportError: the network can be neither scripted nor traced.
    """
    classifier = Classifier(model.classifier.backbone, model.classifier.head).cpu().eval()
    size = model.preprocess.image_size_px
    with _no_deprecation_warnings():
        scripted = _script_or_trace(classifier, size)
        task = model.description.task
        deployed = torch.jit.script(Deployed(model.preprocess, scripted, task).eval())
        description = json.dumps(model.description.model_dump(), allow_nan=False)
        torch.jit.save(deployed, str(path), _extra_files={JSON_NAME: description})
    model.classifier.to(model.device)


def load_torchscript(path: Path) -> nn.Module:
    """Load a file of ours. It is a program: load only files that you trust."""
    with _no_deprecation_warnings():
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return module


def _script_or_trace(classifier: Classifier, image_size_px: int) -> nn.Module:
    try:
        scripted: nn.Module = torch.jit.script(classifier)
    except (RuntimeError, TypeError, NotImplementedError, OSError, FrontendError):
        # torch names no narrower type for what it cannot script; a trace is checked below.
        example = torch.zeros(2, 3, image_size_px, image_size_px)
        try:
            # Not the classifier itself: of a traced module, torch scripts the exported methods.
            layers = nn.Sequential(classifier.backbone, classifier.head)
            scripted = torch.jit.trace(layers, example)  # type: ignore[no-untyped-call]
        except (RuntimeError, TypeError, FrontendError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ExportError(
                f"This backbone can be neither scripted nor traced by torch: {reason}"
            ) from error
    return scripted


@contextmanager
def _no_deprecation_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*`torch\.jit\..* is deprecated.*")
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield
