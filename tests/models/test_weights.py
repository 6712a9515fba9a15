import argparse
import os
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from finetune.errors import ModelError
from finetune.models.backbones import create_backbone
from finetune.models.weights import load_weights, read_weights

REAL_DATA = os.environ.get("FINETUNE_REAL_DATA")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {k: v.clone() for k, v in create_backbone("nano").state_dict().items()}


def _save(state: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def _assert_holds(backbone: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = backbone.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[k], state[k]) for k in state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".bin"])
def test_each_kind_of_file_gives_its_weights_back(tmp_path, state, suffix):
    path = _save(state, tmp_path / f"w{suffix}")
    _assert_holds(create_backbone("nano", weights=path), state)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "model.backbone."],
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, state, prefix, wrapper):
    named = {prefix + k: v for k, v in state.items()}
    content = named if wrapper is None else {wrapper: named, "epoch": 3, "optimizer": {"lr": 0.1}}
    path = _save(content, tmp_path / "w.pth")
    _assert_holds(create_backbone("nano", weights=path), state)


def test_a_lightning_checkpoint_of_a_classifier_gives_its_backbone_only(tmp_path, state):
    named = {f"classifier.backbone.{k}": v for k, v in state.items()}
    named = {k.removeprefix("classifier."): v for k, v in named.items()}
    named |= {"head.linear.weight": torch.zeros(3, 192), "loss.class_weights": torch.ones(3)}
    path = _save({"state_dict": named, "hyper_parameters": {"lr": 1e-3}}, tmp_path / "w.ckpt")
    _assert_holds(create_backbone("nano", weights=path), state)


@pytest.mark.parametrize("head", ["fc", "classifier", "head", "head.fc"])
def test_the_head_of_the_file_is_not_used(tmp_path, state, head):
    classes = {f"{head}.weight": torch.zeros(9, 192), f"{head}.bias": torch.zeros(9)}
    path = _save(state | classes, tmp_path / "w.safetensors")
    _assert_holds(create_backbone("nano", weights=path), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_become_float32(tmp_path, state, dtype):
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    path = _save(cast, tmp_path / "w.safetensors")
    backbone = create_backbone("nano", weights=path)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    _assert_holds(backbone, {k: v.to(state[k].dtype) for k, v in cast.items()})


def test_files_older_than_the_batch_counter_fit(tmp_path, state):
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    _assert_holds(create_backbone("nano", weights=_save(old, tmp_path / "w.pth")), state)


def test_an_argparse_namespace_beside_the_weights_is_plain_data(tmp_path, state):
    content = {"state_dict": state, "args": argparse.Namespace(lr=0.1)}
    _assert_holds(create_backbone("nano", weights=_save(content, tmp_path / "w.pth")), state)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvision_files_give_torchvision_features(tmp_path, name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    backbone = create_backbone(name, weights=_save(theirs.state_dict(), tmp_path / "w.pth")).eval()
    last = {"resnet18": "fc", "densenet121": "classifier"}[name]
    theirs.set_submodule(last, nn.Identity())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), theirs(images))


def test_a_transformers_positions_are_fitted_to_the_image_size(tmp_path):
    path = _save(create_backbone("test_vit").state_dict(), tmp_path / "w.safetensors")
    backbone = create_backbone("test_vit", weights=path, image_size_px=96)
    assert backbone.pos_embed.shape == (1, 1 + 6 * 6, 64)


def test_what_does_not_fit_is_listed_by_kind_and_nothing_is_loaded(tmp_path, state):
    wrong = {k: v for k, v in state.items() if not k.startswith("layer4.")}
    wrong["layer1.0.conv1.weight"] = torch.zeros(7, 32, 3, 3)
    wrong["stranger.weight"] = torch.zeros(1)
    backbone = create_backbone("nano")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(backbone, _save(wrong, tmp_path / "w.pth"))
    message = str(caught.value)
    num_missing = sum(
        k.startswith("layer4.") and not k.endswith("num_batches_tracked") for k in state
    )
    assert f"{num_missing} missing: layer4.0.conv1.weight" in message
    assert f"and {num_missing - 3} more" in message
    assert "1 unexpected: stranger.weight" in message
    assert "layer1.0.conv1.weight (got [7, 32, 3, 3], expected [32, 32, 3, 3])" in message
    _assert_holds(backbone, before)


def test_weights_of_another_architecture_are_refused(tmp_path, state):
    path = _save(state, tmp_path / "w.pth")
    for name in ("resnet18", "test_vit", "densenet121", "test_convnext"):
        with pytest.raises(ModelError, match="does not fit this backbone"):
            create_backbone(name, weights=path)


def test_integers_for_numbers_are_refused(tmp_path, state):
    wrong = state | {"bn1.weight": torch.ones(32, dtype=torch.int8)}
    with pytest.raises(ModelError, match=r"bn1\.weight \(got integer \[32\], expected \[32\]\)"):
        create_backbone("nano", weights=_save(wrong, tmp_path / "w.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_diverged_run_are_refused(tmp_path, state, value):
    wrong = state | {"bn1.weight": torch.full((32,), value)}
    with pytest.raises(ModelError, match=r"NaN or infinity in bn1\.weight"):
        create_backbone("nano", weights=_save(wrong, tmp_path / "w.safetensors"))


class _Bomb:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (os.mkdir, (str(self.proof),))


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("is_old_format", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_never_run(
    tmp_path, state, monkeypatch, forced, is_old_format
):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    proof = tmp_path / "it ran"
    path = tmp_path / "w.pth"
    torch.save(
        {"state_dict": state, "bomb": _Bomb(proof)},
        path,
        _use_new_zipfile_serialization=not is_old_format,
    )
    with pytest.raises(ModelError, match=r"`\w+\.mkdir`.* can run code, so it was refused"):
        read_weights(path)
    assert not proof.exists()
    # The bomb is live: an unsafe load would have run it.
    torch.load(path, weights_only=False)
    assert proof.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.script(nn.ReLU()), path)
    with pytest.raises(ModelError, match="is a TorchScript program"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "lr": 0.1}, "keys epoch, lr"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
        ({}, "keys"),
        ({"model": {}}, "keys"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, found):
    with pytest.raises(ModelError, match=f"holds no weights: got .*{found}"):
        read_weights(_save(content, tmp_path / "w.pth"))


def test_paths_that_are_no_file_are_named(tmp_path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "model.onnx").write_bytes(b"x")
    for name, reason in {
        "absent.pth": "there is no file",
        "empty.pth": "is empty",
        "": "is a folder",
        "model.onnx": r"expected a name in \.safetensors",
    }.items():
        with pytest.raises(ModelError, match=reason):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    "url", ["https://example.org/w.pth", "s3://bucket/w.pth", "hf://org/model/w.pth"]
)
def test_urls_are_refused(url):
    with pytest.raises(ModelError, match=r"got the URL .*, expected a file"):
        read_weights(Path(url))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("part", [0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path, state, suffix, part):
    path = _save(state, tmp_path / f"w{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(len(content) * part))])
    with pytest.raises(ModelError, match="is damaged or no"):
        read_weights(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from([".safetensors", ".pth", ".bin"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_gives_tensors_or_a_model_error_and_nothing_else(tmp_path, suffix, flips):
    path = tmp_path / f"w{suffix}"
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
    if suffix == ".bin":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    else:
        _save(tensors, path)
    content = bytearray(path.read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    path.write_bytes(content)
    try:
        weights = read_weights(path)
    except ModelError:
        return
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


@pytest.mark.skipif(REAL_DATA is None, reason="FINETUNE_REAL_DATA does not name the real data")
def test_real_imagenet_weights_load():
    path = Path(str(REAL_DATA)) / "weights" / "resnet18_imagenet.safetensors"
    backbone = create_backbone("resnet18", weights=path)
    # A new BatchNorm has means of zero everywhere.
    assert all(
        module.running_mean.abs().max() > 0
        for module in backbone.modules()
        if isinstance(module, nn.BatchNorm2d)
    )
