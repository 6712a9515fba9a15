"""Every exported file, opened by its suffix."""

import builtins
import sys

import numpy as np
import onnx
import pytest

from finetune.errors import ConfigError, ModelError
from finetune.exports.runtimes import open_file, require_package

RAW = [".ts", ".pt2", ".onnx"]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 45, 70), np.uint8)


@pytest.mark.parametrize("suffix", RAW)
def test_names_travel_unharmed_and_name_no_file(export_of, suffix):
    model, path = export_of(suffix)
    answer, values = open_file(path, trust=True)
    assert values == model.description.model_dump()
    assert values["class_names"][0] == "<script>alert(1)</script>"
    assert "two\nlines" in values["class_names"]
    assert answer(IMAGES).shape == (3, 5)
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".ts", ".pt2", ".TS"])
def test_what_can_carry_code_asks_for_trust(export_of, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"not even looked at")
    with pytest.raises(ModelError, match="can carry code, which runs when it is opened"):
        open_file(path, trust=False)


@pytest.mark.parametrize("suffix", [*RAW, ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_damage_is_one_line(tmp_path, suffix, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be opened: ") as caught:
        open_file(path, trust=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("suffix", RAW)
def test_half_a_file_is_one_line(export_of, tmp_path, suffix):
    data = export_of(suffix)[1].read_bytes()
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be opened: ") as caught:
        open_file(path, trust=True)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_format(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.onnx: no such file"):
        open_file(tmp_path / "gone.onnx", trust=True)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match=r"folder\.onnx: no such file"):
        open_file(tmp_path / "folder.onnx", trust=True)
    for name in ("model.pkl", "model", "model.ts.zip"):
        with pytest.raises(ModelError, match=r"expected a file that ends in \.ts, \.pt2, \.onnx"):
            open_file(tmp_path / name, trust=True)


@pytest.mark.parametrize("text", [None, "", "[1]", "no json", "[" * 100_000])
def test_a_foreign_onnx_file_is_none_of_ours(export_of, tmp_path, text):
    proto = onnx.load(str(export_of(".onnx")[1]))
    del proto.metadata_props[:]
    if text is not None:
        entry = proto.metadata_props.add()
        entry.key, entry.value = "model.json", text
    onnx.save(proto, str(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match=r"was not exported by finetune: it has no model\.json"):
        open_file(tmp_path / "model.onnx", trust=False)


def test_a_missing_package_says_what_to_install(export_of, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"ONNX needs the package onnxruntime: pip install"):
        require_package("onnxruntime")
    with pytest.raises(ConfigError, match=r"pip install 'finetune\[onnx\]'"):
        open_file(export_of(".onnx")[1], trust=False)
