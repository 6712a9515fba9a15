"""ONNX: one file that onnxruntime alone reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import finetune
from finetune.errors import ExportError
from finetune.exports.answering import read_pixels
from finetune.exports.description import check_description
from finetune.exports.onnx import quantise
from finetune.exports.runtimes import open_file

# What somebody has who deploys the file: onnxruntime, and nothing of ours.
FRESH = """
import json, sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
with np.load(sys.argv[1]) as pictures:
    answers = [session.run(["probabilities"], {"images": p})[0].tolist() for p in pictures.values()]
values = json.loads(session.get_modelmeta().custom_metadata_map["model.json"])
print(json.dumps({"answers": answers, "names": values["class_names"]}))
"""

# Through our own door, torch would only cost seconds.
OURS = """
import sys
from pathlib import Path
import numpy as np
from finetune.exports.runtimes import open_file
answer, _ = open_file(Path(sys.argv[1]), trust=False)
answer(np.zeros((2, 3, 20, 30), np.uint8))
print(sorted({"torch", "timm", "lightning"} & set(sys.modules)))
"""


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("task", "precision", "within"),
    [
        ("multiclass", "float32", 1e-4),
        ("multilabel", "float32", 1e-4),
        ("multiclass", "float16", 2e-2),
    ],
)
def test_the_file_answers_like_the_bundle(export_of, assert_alike, task, precision, within):
    model, path = export_of(".onnx", task, precision)
    answer, values = open_file(path, trust=False)
    assert_alike(answer, model, within=within)
    assert check_description(values, "") == model.description


def test_int8_is_smaller_answers_and_says_what_it_is(export_of, assert_alike):
    model, path = export_of(".onnx", precision="int8")
    _, whole = export_of(".onnx")
    answer, values = open_file(path, trust=False)
    assert check_description(values, "") == model.description
    assert_alike(answer, model, within=0.5)  # how far apart is for the gate
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert path.stat().st_size < 0.5 * whole.stat().st_size
    # Not the same numbers, or nothing was quantised.
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 50), np.uint8)
    assert np.abs(answer(images) - open_file(whole, trust=False)[0](images)).max() > 1e-6


def test_what_cannot_be_quantised_is_an_error_in_one_line(tmp_path):
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="onnxruntime cannot quantise this model: ") as caught:
        quantise(tmp_path / "none.onnx", tmp_path / "int8.onnx", [])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "int8.onnx").exists()


def test_half_precision_is_half_the_size(export_of):
    whole, half = (export_of(".onnx", precision=p)[1] for p in ("float32", "float16"))
    assert half.stat().st_size < 0.7 * whole.stat().st_size


def test_onnxruntime_alone_reads_it(export_of, photos, tmp_path):
    model, path = export_of(".onnx")
    pixels = [read_pixels(photo, 1) for photo in photos]
    np.savez(tmp_path / "pictures.npz", *pixels)
    said = json.loads(python(FRESH, tmp_path / "pictures.npz", path))
    assert said["names"] == model.class_names
    answer, _ = open_file(path, trust=False)
    for image, found in zip(pixels, said["answers"], strict=True):
        assert np.abs(np.array(found) - answer(image)).max() <= 1e-6


def test_it_is_opened_without_torch(export_of):
    assert python(OURS, export_of(".onnx")[1]).strip() == "[]"


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_it_tells_nothing_of_the_machine_that_made_it(export_of, precision):
    data = export_of(".onnx", precision=precision)[1].read_bytes()
    repository = Path(finetune.__file__).parents[1]
    for word in (str(repository), str(Path.home()), sys.prefix, "site-packages", os.sep + "tmp"):
        assert word.encode() not in data
    for word in (b".py", b"forward(", b"Traceback", b"stack_trace"):
        assert word not in data


def test_the_graph_takes_any_batch_and_size_and_holds_its_weights(export_of):
    proto = onnx.load(str(export_of(".onnx")[1]), load_external_data=False)
    (images,), (probabilities,) = proto.graph.input, proto.graph.output
    assert (images.name, probabilities.name) == ("images", "probabilities")
    dims = images.type.tensor_type.shape.dim
    assert [bool(dim.dim_param) for dim in dims] == [True, False, True, True]
    assert dims[1].dim_value == 3
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert all(not t.external_data for t in proto.graph.initializer)
