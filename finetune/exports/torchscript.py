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
from torch import nn
from torch.jit._trace import TracerWarning
from torch.jit.frontend import FrontendError

from finetune.errors import ExportError
from finetune.exports.bundle import Model
from finetune.exports.deployed import Deployed, copy_of_classifier
from finetune.exports.interface import JSON_NAME
from finetune.models.classifier import Classifier


def save_torchscript(model: Model, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the model as TorchScript, with its description inside as ``model.json``.

    A network that cannot be scripted is traced; preprocessing is always scripted, since it must
    take images of any size.

    Args:
        model: the bundle's.
        path: of the file.
        dtype: of the weights, and what the network computes in.

    Raises:
        ExportError: the network can be neither scripted nor traced.
    """
    classifier = copy_of_classifier(model, dtype)
    description = model.description
    with _no_deprecation_warnings():
        scripted = _script_or_trace(classifier, model.preprocess.image_size_px, dtype)
        deployed = Deployed(
            model.preprocess, scripted, description.task, description.temperature, dtype
        )
        program = torch.jit.script(deployed.eval())
        text = json.dumps(description.model_dump(), allow_nan=False)
        torch.jit.save(program, str(path), _extra_files={JSON_NAME: text})


def load_torchscript(path: Path) -> tuple[nn.Module, str]:
    """Load a file of ours and the description in it. It is a program: only if you trust it.

    Freezing folds BatchNorm into the convolutions, a third more images a second on a CPU; the
    file itself stays as it is, so that it can still be moved to a GPU.
    """
    extra: dict[str, str | bytes] = {JSON_NAME: ""}
    with _no_deprecation_warnings():
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
        frozen: nn.Module = torch.jit.freeze(module.eval())
    text = extra[JSON_NAME]
    return frozen, text.decode() if isinstance(text, bytes) else text


def _script_or_trace(classifier: Classifier, image_size_px: int, dtype: torch.dtype) -> nn.Module:
    try:
        scripted: nn.Module = torch.jit.script(classifier)
    except (RuntimeError, TypeError, NotImplementedError, OSError, FrontendError):
        # torch names no narrower type for what it cannot script; a trace is checked below.
        example = torch.zeros(2, 3, image_size_px, image_size_px, dtype=dtype)
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
