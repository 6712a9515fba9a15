"""ONNX: one file that needs onnxruntime alone: raw images in, probabilities out."""

import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from finetune.errors import ExportError
from finetune.exports.bundle import Model
from finetune.exports.graph import trace_graph
from finetune.exports.interface import INPUT, JSON_NAME, OUTPUT, Pixels
from finetune.exports.runtimes import require_package

OPSET = 20


def save_onnx(model: Model, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the model as ONNX, with its description in the metadata under ``model.json``.

    Args:
        model: the bundle's.
        path: of the file.
        dtype: of the weights, and what the network computes in.

    Raises:
        ConfigError: the packages are not installed.
        ExportError: the backbone cannot be traced, or has an operator that ONNX lacks.
    """
    onnx = require_package("onnx")
    require_package("onnxscript")
    graph = trace_graph(model, dtype=dtype)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own types, which move between versions
        reason = str(error).strip().split("\n")[0]
        raise ExportError(f"torch cannot write this backbone as ONNX: {reason}") from error
    assert program is not None  # noqa: S101 - for mypy; None only for the old exporter
    proto = program.model_proto
    # The exporter writes where each operator comes from: source lines and paths of this machine.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del value.metadata_props[:]
    _describe(proto, json.dumps(model.description.model_dump(), allow_nan=False))
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path))


def quantise(source: Path, path: Path, images: Iterable[Pixels]) -> None:
    """Make an int8 file of a float32 one: weights by channel, activations by calibration.

    Convolutions and linear layers alone; preprocessing stays in float32.

    Args:
        source: of `save_onnx`.
        path: of the int8 file.
        images: to calibrate on, uint8 ``[1, 3, H, W]`` each.

    Raises:
        ConfigError: the packages are not installed.
        ExportError: the graph cannot be quantised.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference"; the QDQ format of onnxruntime.
    """
    require_package("onnxruntime")
    onnx = require_package("onnx")
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, Pixels] | None:
            found = next(self.images, None)
            return None if found is None else {INPUT: found}

    with TemporaryDirectory() as folder, _quiet():
        written = Path(folder) / "int8.onnx"
        try:
            quantization.quantize_static(
                str(source),
                str(written),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm"],
                per_channel=True,
                # Seven bits: with eight, processors without VNNI saturate while they add up.
                reduce_range=True,
            )
        except Exception as error:  # onnxruntime raises what its Python and its C++ raise
            reason = str(error).strip().split("\n")[0]
            raise ExportError(f"onnxruntime cannot quantise this model: {reason}") from error
        proto = onnx.load(str(written))
        _describe(proto, _text_in(onnx.load(str(source), load_external_data=False)))
        path.write_bytes(proto.SerializeToString())


def _text_in(proto: Any) -> str:
    """Read the description in a model that is parsed already; empty where there is none."""
    return next((entry.value for entry in proto.metadata_props if entry.key == JSON_NAME), "")


def _describe(proto: Any, text: str) -> None:
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = JSON_NAME, text


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress and the warnings of the exporter and of the quantiser to themselves."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)
