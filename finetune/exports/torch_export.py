"""``.pt2``: a graph of torch's own operators, for torch alone; what replaces TorchScript."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from finetune.exports.bundle import Model
from finetune.exports.graph import trace_graph
from finetune.exports.interface import JSON_NAME


def save_torch_export(model: Model, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the model as ``.pt2``, with its description inside as ``model.json``.

    Args:
        model: the bundle's.
        path: of the file.
        dtype: of the weights, and what the network computes in.

    Raises:
        ExportError: torch cannot trace this backbone.
    """
    text = json.dumps(model.description.model_dump(), allow_nan=False)
    program = trace_graph(model, dtype=dtype)
    with warnings.catch_warnings():
        # About BatchNorm's counters of batches, of which several share one memory.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, path, extra_files={JSON_NAME: text})


def load_torch_export(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """Load a file of ours and the description in it. It is a program: only if you trust it."""
    extra: dict[str, str | bytes] = {JSON_NAME: ""}
    program = torch.export.load(path, extra_files=extra)
    text = extra[JSON_NAME]
    return program.module(), text.decode() if isinstance(text, bytes) else text
