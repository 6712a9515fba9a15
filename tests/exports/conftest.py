"""Bundles of untrained models, whose answers still differ from image to image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from finetune.data.preprocess import Preprocess
from finetune.exports.bundle import save_bundle
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head

CLASS_NAMES = ["ant", "bee", "wasp, common"]
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
    ) -> tuple[Path, Classifier, Preprocess]:
        body = create_backbone(backbone, image_size_px=image_size_px)
        info = describe_backbone(body)
        top = create_head(head, in_features=info.num_features, num_classes=3, **HEADS[head])
        classifier = Classifier(body, top)
        shake(classifier)
        preprocess = Preprocess(
            info.image_size_px, resize_mode, 0.875, info.interpolation, info.mean, info.std
        )
        folder = tmp_path_factory.mktemp("bundle")
        save_bundle(
            folder,
            classifier=classifier,
            preprocess=preprocess,
            backbone_name=backbone,
            head_name=head,
            head_arguments=HEADS[head],
            class_names=CLASS_NAMES,
            task=task,
            max_megapixels=1,
            versions={"torch": torch.__version__},
            command="finetune train",
        )
        return folder, classifier, preprocess

    return make


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
