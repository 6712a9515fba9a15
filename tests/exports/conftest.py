"""Bundles of untrained models, whose answers still differ from image to image; their exports."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from finetune.data.preprocess import Preprocess
from finetune.exports.answering import read_pixels
from finetune.exports.bundle import Model, load_model, save_bundle
from finetune.exports.interface import Answer
from finetune.exports.onnx import quantise, save_onnx
from finetune.exports.torch_export import save_torch_export
from finetune.exports.torchscript import save_torchscript
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head

CLASS_NAMES = ["ant", "bee", "wasp, common"]
HOSTILE_NAMES = [
    "<script>alert(1)</script>",
    "../../x",
    "=cmd|' /C calc'!A0",
    "two\nlines",
    "ĳ\x00",
]
SAVERS = {".ts": save_torchscript, ".pt2": save_torch_export, ".onnx": save_onnx}
HEADS = {
    "linear": {"dropout": 0.1},
    "mlp": {"dropout": 0.1, "hidden_features": 12},
    "cosine": {"dropout": 0.1, "scale": 16.0},
}


def shake(network: nn.Module) -> None:
    """Give every parameter and statistic a value that differs from its first."""
    torch.manual_seed(3)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.1 * torch.rand_like(tensor)
            tensor.add_(noise if "running_var" in name else noise - 0.05)


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Path, Classifier, Preprocess]]:
    """Save a bundle in a new folder; give it with what it was made of."""

    def make(
        backbone: str = "nano",
        head: str = "linear",
        *,
        resize_mode: str = "crop",
        image_size_px: int = 32,
        task: str = "multiclass",
        temperature: float = 1.0,
        class_names: list[str] = CLASS_NAMES,
        color: str = "rgb",
    ) -> tuple[Path, Classifier, Preprocess]:
        torch.manual_seed(3)
        body = create_backbone(backbone, image_size_px=image_size_px)
        info = describe_backbone(body)
        arguments = HEADS[head]
        width, count = info.num_features, len(class_names)
        top = create_head(head, in_features=width, num_classes=count, **arguments)
        classifier = Classifier(body, top)
        shake(classifier)
        preprocess = Preprocess(
            info.image_size_px,
            resize_mode,
            0.875,
            info.interpolation,
            info.mean,
            info.std,
            color,
        )
        folder = tmp_path_factory.mktemp("bundle")
        save_bundle(
            folder,
            classifier=classifier,
            preprocess=preprocess,
            backbone_name=backbone,
            head_name=head,
            head_arguments=arguments,
            class_names=class_names,
            task=task,
            max_megapixels=1,
            versions={"torch": torch.__version__},
            command="finetune train",
        )
        values = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**values, "temperature": temperature}))
        return folder, classifier, preprocess

    return make


@pytest.fixture(scope="session")
def bundle_of(
    make_bundle: Callable[..., tuple[Path, Classifier, Preprocess]],
) -> Callable[[str], Path]:
    """Give the bundle of a task; that of one class has hostile names. Do not change it.

    At the low temperature, another image is another answer, though the network is untrained.
    """

    @cache
    def bundle(task: str) -> Path:
        if task == "multilabel":
            folder, _, _ = make_bundle(task=task, temperature=2.0, resize_mode="pad", color="grey")
        else:
            folder, _, _ = make_bundle(task=task, temperature=0.1, class_names=HOSTILE_NAMES)
        return folder

    return bundle


@pytest.fixture(scope="session")
def export_of(
    bundle_of: Callable[[str], Path], photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Model, Path]]:
    """Give a model and its exported file, which is made once. Do not change it."""

    @cache
    def make(suffix: str, task: str, precision: str) -> tuple[Model, Path]:
        model = load_model(bundle_of(task))
        path = tmp_path_factory.mktemp("export") / f"model{suffix}"
        if precision == "int8":
            quantise(make(suffix, task, "float32")[1], path, [read_pixels(p, 1) for p in photos])
        else:
            SAVERS[suffix](model, path, dtype=getattr(torch, precision))
        return model, path

    def export(
        suffix: str, task: str = "multiclass", precision: str = "float32"
    ) -> tuple[Model, Path]:
        return make(suffix, task, precision)

    return export


@pytest.fixture(scope="session")
def assert_alike(photos: list[Path]) -> Callable[..., None]:
    """Return a function that holds what answers against a model: batches of 1 and 3, all sizes."""

    def check(answer: Answer, model: Model, *, within: float) -> None:
        for path in photos:
            one = read_pixels(path, 1)
            three = np.concatenate([one, 255 - one, one[..., ::-1]])
            for pixels in (one, three):
                resized = model.preprocess.resize(torch.from_numpy(np.ascontiguousarray(pixels)))
                expected = model.probabilities(resized).numpy()
                found = answer(np.ascontiguousarray(pixels))
                assert found.shape == (len(pixels), len(model.class_names))
                assert found.dtype == np.float32
                assert np.abs(found - expected).max() <= within

    return check


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of different sizes, proportions and modes."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for index, (width, height, mode) in enumerate(
        [(40, 40, "RGB"), (31, 90, "RGB"), (200, 33, "L"), (20, 25, "RGBA"), (64, 48, "P")]
    ):
        smooth = np.random.default_rng(index).random((5, 6, 3))
        image = PIL.Image.fromarray((smooth * 255).astype(np.uint8))
        path = folder / f"{index}.png"
        image.resize((width, height), PIL.Image.Resampling.BICUBIC).convert(mode).save(path)
        paths.append(path)
    return paths
