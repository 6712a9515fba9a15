"""Weights in the names of timm and of torchvision."""

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50

from finetune.errors import ExportError, ModelError
from finetune.exports.answering import read_pixels
from finetune.exports.bundle import load_model
from finetune.exports.description import check_description
from finetune.exports.layouts import save_weights
from finetune.exports.runtimes import open_file


@pytest.fixture(scope="module")
def model_of(make_bundle):
    """Return a function that gives a model with a linear head, made once."""
    models = {}

    def model(backbone, head="linear"):
        if (backbone, head) not in models:
            folder, _, _ = make_bundle(backbone, head, image_size_px=64, temperature=2.0)
            models[backbone, head] = load_model(folder)
        return models[backbone, head]

    return model


def save(model, path, layout, *, with_head=True, dtype=torch.float32):
    save_weights(model, path, layout=layout, with_head=with_head, dtype=dtype)
    return path


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_another_library_builds_the_model_and_gives_the_same_logits(
    model_of, tmp_path, backbone, layout
):
    model = model_of(backbone)
    state = load_file(save(model, tmp_path / "model.safetensors", layout))
    library = timm.create_model if layout == "timm" else torchvision.models.get_model
    other = library(backbone, num_classes=3).eval()
    other.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = other(images), model.classifier(images)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_the_backbone_alone_serves_detectors_segmenters_and_features(model_of, tmp_path, layout):
    model = model_of("resnet50")
    state = load_file(save(model, tmp_path / "backbone.safetensors", layout, with_head=False))
    assert not any(name.startswith("fc") for name in state)
    hosts = [
        fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone.body,
        deeplabv3_resnet50(weights=None, weights_backbone=None).backbone,
        timm.create_model("resnet50", features_only=True),
        timm.create_model("resnet50", num_classes=0),
    ]
    for host in hosts:
        host.load_state_dict(state, strict=True)
        assert torch.equal(host.conv1.weight, model.classifier.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("layout", "with_head", "dtype", "within"),
    [
        ("timm", True, torch.float32, 1e-4),
        ("torchvision", True, torch.float32, 1e-4),
        ("timm", True, torch.float16, 2e-2),
        ("torchvision", False, torch.float32, 1e-4),
    ],
)
def test_a_file_is_opened_without_trust_and_answers(
    model_of, photos, tmp_path, layout, with_head, dtype, within
):
    model = model_of("resnet18")
    path = save(model, tmp_path / "a.safetensors", layout, with_head=with_head, dtype=dtype)
    answer, values = open_file(path, trust=False)
    assert check_description(values, "") == model.description
    for photo in photos[:3]:
        pixels = read_pixels(photo, 1)
        resized = model.preprocess.resize(torch.from_numpy(pixels))
        expected = model.probabilities(resized) if with_head else model.features(resized)
        scale = 1 if with_head else expected.abs().max().item()
        assert answer(pixels).dtype == np.float32
        assert np.abs(answer(pixels) - expected.numpy()).max() <= within * scale


def test_half_precision_is_half_the_size_and_counters_stay_whole(model_of, tmp_path):
    model = model_of("resnet18")
    whole = save(model, tmp_path / "whole.safetensors", "timm")
    half = save(model, tmp_path / "half.safetensors", "timm", dtype=torch.float16)
    assert half.stat().st_size < 0.51 * whole.stat().st_size
    dtypes = {name: value.dtype for name, value in load_file(half).items()}
    assert dtypes["fc.weight"] == torch.float16
    assert dtypes["bn1.num_batches_tracked"] == torch.int64


@pytest.mark.parametrize(
    ("backbone", "head", "layout", "with_head", "reason"),
    [
        ("nano", "linear", "timm", True, "timm has no `nano`"),
        ("nano", "linear", "torchvision", False, "torchvision has no `nano`"),
        ("resnet18", "mlp", "timm", True, "a head of kind mlp has no place in it"),
        ("resnet18", "cosine", "torchvision", True, "a head of kind cosine has no place in it"),
        ("resnet10t", "linear", "torchvision", True, "torchvision has no `resnet10t`"),
        ("mobilenetv3_small_050", "linear", "torchvision", False, "torchvision has no `mobile"),
        ("efficientnet_b0", "linear", "torchvision", True, "is built in another way"),
    ],
)
def test_what_has_no_place_there_is_refused_with_the_reason(
    model_of, tmp_path, backbone, head, layout, with_head, reason
):
    model = model_of(backbone, head)
    with pytest.raises(ExportError, match=rf"layout={layout}: .*{reason}") as caught:
        save(model, tmp_path / "model.safetensors", layout, with_head=with_head)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_mlp_head_still_leaves_the_backbone(model_of, tmp_path):
    model = model_of("resnet18", "mlp")
    path = save(model, tmp_path / "backbone.safetensors", "torchvision", with_head=False)
    other = torchvision.models.resnet18()
    other.fc = nn.Identity()
    other.load_state_dict(load_file(path), strict=True)


@pytest.fixture
def edited(model_of, tmp_path):
    """Return a function that writes the file with another header."""
    path = save(model_of("resnet18"), tmp_path / "model.safetensors", "timm")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()

    def edit(change):
        change(header)
        save_file(load_file(path), path, metadata=header)
        return path

    return edit


def renamed(name):
    def change(header):
        values = json.loads(header["model.json"])
        values["backbone"]["name"] = name
        header["model.json"] = json.dumps(values)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("layout"), "its header has no layout"),
        (lambda h: h.update(layout="keras"), "its header has no layout"),
        (lambda h: h.pop("model.json"), "its header has no layout"),
        (lambda h: h.update({"model.json": "{}"}), "no model description: format_version"),
        (lambda h: h.update({"model.json": "[" * 10**5}), "cannot be opened"),
        (lambda h: h.pop("with_head"), "cannot be opened: .*fc.weight"),
        (renamed("resnet34"), "cannot be opened"),
        (renamed("resnet18.no_such_tag"), "cannot be opened"),
        (renamed("nano"), "nano"),
    ],
)
def test_a_header_that_is_none_of_ours_is_refused(edited, change, message):
    with pytest.raises(ModelError, match=message):
        open_file(edited(change), trust=False)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:a/b", "local-dir:{}", "../{}"])
def test_a_name_in_a_header_is_no_address(edited, tmp_path, monkeypatch, name):
    def created(*args, **kwargs):
        raise AssertionError("timm was asked")

    monkeypatch.setattr(timm, "create_model", created)
    with pytest.raises(ModelError, match="timm has no `"):
        open_file(edited(renamed(name.format(tmp_path))), trust=False)
