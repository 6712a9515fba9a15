"""The model as one graph for any size of image and batch: what ``.pt2`` and ONNX are made of."""

import torch
from torch.export import Dim, ExportedProgram

from finetune.errors import ExportError
from finetune.exports.bundle import Model
from finetune.exports.deployed import Deployed, copy_of_classifier
from finetune.exports.graph_preprocess import GraphPreprocess

MAX_SIDE_PX = 65_535


def trace_graph(model: Model, *, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """Trace raw images ``[B, 3, H, W]`` to probabilities ``[B, C]``, for any B, H and W.

    Args:
        model: the bundle's.
        dtype: of the weights, and what the network computes in.

    Raises:
        ExportError: torch cannot trace this backbone.
    """
    description = model.description
    deployed = Deployed(
        GraphPreprocess(model.preprocess),
        copy_of_classifier(model, dtype),
        description.task,
        description.temperature,
        dtype,
    ).eval()
    side = {"min": 1, "max": MAX_SIDE_PX}
    sizes = {0: Dim("batch", min=1), 2: Dim("height", **side), 3: Dim("width", **side)}
    # Neither 1, which would stay 1 for ever, nor as large as each other or as the network's.
    example = torch.zeros(2, 3, 50, 70, dtype=torch.uint8)
    try:
        return torch.export.export(deployed, (example,), dynamic_shapes=(sizes,), strict=False)
    except Exception as error:  # torch raises its own, and what the network's Python raises
        reason = str(error).strip().split("\n")[0]
        raise ExportError(f"This backbone cannot be traced by torch.export: {reason}") from error
