"""Exported files, ready to predict with."""

import json

import onnx
import pytest
import torch

from finetune.errors import ModelError
from finetune.exports.bundle import load_model
from finetune.exports.exported import is_exported, load_exported
from finetune.exports.layouts import save_weights


@pytest.mark.parametrize("suffix", [".ts", ".pt2", ".onnx"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_it_answers_like_the_model_and_says_what_it_is(export_of, suffix, task):
    model, path = export_of(suffix, task)
    exported = load_exported(path, trust=True)
    assert (exported.path, exported.description) == (path, model.description)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 50, 33), dtype=torch.uint8, generator=generator)
    images = images.to(memory_format=torch.channels_last)  # as decoded images lie in memory
    found = exported.probabilities(images)
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    expected = model.probabilities(model.preprocess.resize(images))
    assert (found - expected).abs().max() <= 1e-4


def test_what_is_an_exported_file(tmp_path):
    (tmp_path / "run.onnx").mkdir()
    for name in ("model.ts", "model.PT2", "a.onnx", "gone.safetensors"):
        assert is_exported(tmp_path / name)
    for name in ("run.onnx", "runs/latest", "model.json", "model.pth"):
        assert not is_exported(tmp_path / name)


def test_trust_is_asked_for(export_of):
    for suffix in (".ts", ".pt2"):
        with pytest.raises(ModelError, match="trust=true"):
            load_exported(export_of(suffix)[1], trust=False)
    assert load_exported(export_of(".onnx")[1], trust=False)


@pytest.mark.parametrize("with_head", [True, False])
def test_weights_answer_only_with_their_head(make_bundle, tmp_path, with_head):
    model = load_model(make_bundle("resnet18")[0])
    path = tmp_path / "model.safetensors"
    save_weights(model, path, layout="timm", with_head=with_head, dtype=torch.float32)
    if with_head:
        assert load_exported(path, trust=False).description == model.description
        return
    with pytest.raises(ModelError, match=r"shape \[1, 512\] .*expected \[1, 3\]; a backbone alone"):
        load_exported(path, trust=False)


@pytest.fixture
def described(export_of, tmp_path):
    """Return a function that writes the ONNX file with another description."""

    def write(**changes):
        proto = onnx.load(str(export_of(".onnx")[1]))
        (entry,) = proto.metadata_props
        entry.value = json.dumps({**json.loads(entry.value), **changes})
        onnx.save(proto, str(tmp_path / "model.onnx"))
        return tmp_path / "model.onnx"

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b"]}, r"shape \[1, 5\] for an image, expected \[1, 2\]"),
        ({"format_version": 2}, "Install a newer finetune"),
        ({"_target_": "os.system"}, r"model\.json in .* is no model description: _target_"),
        ({"temperature": -1}, "temperature"),
        ({"class_names": [str(i) for i in range(100_001)]}, "class_names"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(described, changes, message):
    with pytest.raises(ModelError, match=message):
        load_exported(described(**changes), trust=False)


def test_a_file_that_does_not_answer_is_one_line(export_of, tmp_path):
    model, _ = export_of(".onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    images = helper.make_tensor_value_info("images", kinds.UINT8, ["b", 3, "h", "w"])
    answer = helper.make_tensor_value_info("probabilities", kinds.UINT8, [None])
    shape = helper.make_tensor("shape", kinds.INT64, [1], [7])
    node = helper.make_node("Reshape", ["images", "shape"], ["probabilities"])
    graph = helper.make_graph([node], "bad", [images], [answer], [shape])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(proto, {"model.json": model.description.model_dump_json()})
    onnx.save(proto, str(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match=r"model\.onnx does not answer: ") as caught:
        load_exported(tmp_path / "model.onnx", trust=False)
    assert "\n" not in str(caught.value)
