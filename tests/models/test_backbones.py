import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import finetune.models.backbones
from finetune.errors import ModelError
from finetune.models.backbones import BackboneInfo, create_backbone, describe_backbone

FAMILIES = (
    "nano",
    "resnet18",
    "resnetv2_50",
    "densenet121",
    "vgg11",
    "mobilenetv3_small_050",
    "convnext_atto",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "inception_v3",
)


@cache
def _backbone(name: str) -> nn.Module:
    return create_backbone(name).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_pooled_and_as_wide_as_described(name):
    info = describe_backbone(_backbone(name))
    size = info.image_size_px
    with torch.inference_mode():
        features = _backbone(name)(torch.zeros(1, 3, size, size))
    assert features.shape == (1, info.num_features)
    assert info.name == name


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize("name", ["nano", "mobilenetv3_small_050", "convnext_atto"])
def test_backbones_script(name):
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(torch.jit.script(_backbone(name))(images), _backbone(name)(images))


def test_description_is_timms():
    assert describe_backbone(create_backbone("resnet18.tv_in1k")) == BackboneInfo(
        name="resnet18",
        num_features=512,
        image_size_px=224,
        crop_fraction=0.875,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    vit = describe_backbone(_backbone("vit_tiny_patch16_224"))
    assert (vit.mean, vit.crop_fraction) == ((0.5, 0.5, 0.5), 0.9)


def test_a_tag_chooses_its_own_description():
    assert describe_backbone(create_backbone("resnet18.tv_in1k")).interpolation == "bilinear"
    assert describe_backbone(create_backbone("resnet18.a1_in1k")).interpolation == "bicubic"


def test_defaults_where_timm_says_nothing():
    bare = nn.Identity()
    bare.num_features = 7
    assert describe_backbone(bare) == BackboneInfo(
        name="Identity",
        num_features=7,
        image_size_px=224,
        crop_fraction=0.875,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


@pytest.mark.parametrize("size", [32, 48, 64, 128])
def test_nano_is_small_and_takes_small_images(size):
    backbone = create_backbone("nano", image_size_px=size)
    assert 0.7e6 < sum(p.numel() for p in backbone.parameters()) < 1.2e6
    assert backbone(torch.randn(2, 3, size, size)).shape == (2, 192)
    assert backbone.training


def test_nano_halves_a_small_image_once_before_its_first_stage():
    backbone = _backbone("nano")
    shapes = []
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        layer.register_forward_hook(lambda _m, _i, output: shapes.append(output.shape[-1]))
    backbone(torch.zeros(1, 3, 32, 32))
    assert shapes == [16, 8, 4, 2]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_are_built_for_the_image_size(name):
    backbone = create_backbone(name, image_size_px=96)
    info = describe_backbone(backbone)
    assert info.image_size_px == 96
    assert backbone(torch.zeros(1, 3, 96, 96)).shape == (1, info.num_features)
    with pytest.raises(AssertionError):
        backbone(torch.zeros(1, 3, 224, 224))


def test_convnets_take_any_size_and_are_described_by_the_one_asked_for():
    assert describe_backbone(create_backbone("resnet18", image_size_px=64)).image_size_px == 64


def test_timms_registry_is_not_changed_by_an_image_size():
    create_backbone("resnet18", image_size_px=64)
    assert describe_backbone(create_backbone("resnet18")).image_size_px == 224


@pytest.mark.parametrize(
    ("name", "size", "hint"),
    [
        ("inception_v3", 32, "`inception_v3` cannot take images of 32 px .* made for 299 px"),
        ("test_vit", 8, "`test_vit`"),
    ],
)
def test_an_image_size_that_cannot_work_is_an_error(name, size, hint):
    with pytest.raises(ModelError, match=hint):
        create_backbone(name, image_size_px=size)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnt18", "Did you mean `resnet18`"),
        ("ResNet18", "Did you mean `resnet18`"),
        ("nanoo", "Did you mean `nano`"),
        ("hf-hub:timm/resnet18.a1_in1k", "expected `nano` or an architecture of timm"),
        ("/tmp/resnet18", "expected `nano` or an architecture of timm"),
        ("", "expected `nano` or an architecture of timm"),
        ("resnet18.tv_in1", "Did you mean `resnet18.tv_in1k`"),
    ],
)
def test_unknown_names_get_the_nearest_word(name, hint):
    with pytest.raises(ModelError, match=hint):
        create_backbone(name)


def test_the_weights_of_nano_are_part_of_the_package():
    file = Path(finetune.models.backbones.__file__).with_name("nano.safetensors")
    assert file.stat().st_size <= 4_000_000
    stored = load_file(file)
    assert all(v.dtype == torch.float16 for v in stored.values() if v.is_floating_point())
    backbone = create_backbone("nano", pretrained=True)
    assert sum(parameter.numel() for parameter in backbone.parameters()) <= 1_500_000
    state = backbone.state_dict()
    assert set(state) == set(stored)
    for name, value in state.items():
        assert torch.equal(value, stored[name].to(value.dtype)), name
        assert torch.isfinite(value.float()).all()
        assert value.dtype != torch.float16


@pytest.mark.parametrize("side_px", [32, 48, 64, 96, 128])
def test_embedded_features_tell_images_apart_at_any_size(side_px):
    backbone = create_backbone("nano", pretrained=True, image_size_px=side_px).eval()
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(images, size=(side_px, side_px), mode="bilinear")
    with torch.inference_mode():
        features = backbone(4 * images - 2)
    assert torch.isfinite(features).all()
    assert (torch.cdist(features, features) + torch.eye(8)).min() > 0.1
    assert (features.std(0) > 0).float().mean() > 0.5


def test_two_sources_of_weights_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"as well as model\.pretrained=true"):
        create_backbone("resnet18", pretrained=True, weights=tmp_path / "w.pth")


def test_an_architecture_without_pretrained_weights_says_so():
    name = next(n for n in timm.list_models() if not timm.get_pretrained_cfg(n).has_weights)
    with pytest.raises(ModelError, match=r"timm has none for it.*\n.*model\.weights=FILE"):
        create_backbone(name, pretrained=True)


def test_without_a_hub_the_error_comes_in_seconds(tmp_path):
    code = (
        "import time; from finetune.models.backbones import create_backbone\n"
        "start = time.monotonic()\n"
        "try: create_backbone('resnet18', pretrained=True)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(time.monotonic() - start)\n"
    )
    environment = os.environ | {
        # The hub's client reads these when it is imported.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    *message, seconds = done.stdout.splitlines()
    assert message[0].startswith("ModelError model.pretrained: no weights for `resnet18`")
    assert "model.weights=FILE" in message[1]
    assert "model=nano" in message[1]
    assert float(seconds) < 10


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    asked = []

    def head(url, timeout):
        asked.append((url, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    with pytest.raises(ModelError, match="hub cannot be reached"):
        create_backbone("resnet18", pretrained=True)
    ((_, timeout),) = asked
    assert timeout <= 5


def test_weights_in_the_hubs_cache_need_no_network(tmp_path, monkeypatch):
    torch.manual_seed(3)
    state = timm.create_model("resnet18").state_dict()
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    asked = []

    def find(repository, filename, revision):
        asked.append((repository, filename, revision))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", find)
    backbone = create_backbone("resnet18.tv_in1k", pretrained=True)
    assert asked == [("timm/resnet18.tv_in1k", "model.safetensors", None)]
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
