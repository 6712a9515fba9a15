"""The map shows the place that decides, and follows the head and the backbone."""

from copy import deepcopy
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from finetune.data.decode import decode_image
from finetune.data.preprocess import Preprocess
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.explain import NoMapError, class_activation_map, class_activation_maps
from finetune.models.heads import create_head

CONVNETS = [
    ("nano", 32),
    ("resnet18", 96),
    ("resnetv2_50", 64),
    ("densenet121", 64),
    ("efficientnet_b0", 64),
    ("convnext_atto", 64),
    ("regnety_002", 64),
    ("inception_v3", 128),
    # These have layers between the pooled map and the features,
    ("mobilenetv3_small_050", 64),
    ("ghostnet_050", 64),
    # and this one looks at places before it pools them.
    ("vgg11_bn", 64),
]


class _Colours(nn.Module):
    """A backbone by hand: its map has a channel for each colour, in fields of 8 pixels."""

    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


class _Places(nn.Module):
    """Its map is the image, and its head sees every channel at every place."""

    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, features: Tensor) -> Tensor:
        return features.relu_().flatten(1)


def _head(weights: list[list[float]]) -> nn.Linear:
    head = nn.Linear(len(weights[0]), len(weights), bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weights))
    return head.requires_grad_(False)


def _enlarge(evidence: Tensor, size_px: int) -> npt.NDArray[np.float32]:
    """Clamp, enlarge and scale as the map is, by Pillow."""
    small = PIL.Image.fromarray(evidence.clamp(min=0).float().numpy())
    large = np.asarray(small.resize((size_px, size_px), PIL.Image.Resampling.BILINEAR))
    return large / large.max() if large.any() else large


@pytest.fixture
def image() -> Tensor:
    """Return a black image, red in its upper left corner and green in its lower right one."""
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, :16, :16] = 1
    image[0, 1, -16:, -16:] = 1
    return image


def test_the_map_is_high_where_the_class_is_decided_and_nowhere_else(image: Tensor) -> None:
    head = _head([[1, -1, 0], [-1, 1, 0]])
    red = class_activation_map(_Colours(), head, image, 0)
    green = class_activation_map(_Colours(), head, image, 1)
    assert red.shape == (64, 64)
    assert red.dtype == torch.float32
    assert red[4:12, 4:12].min() > 0.95
    assert red[:, 32:].max() == red[32:].max() == 0
    assert green[-12:-4, -12:-4].min() > 0.95
    assert green[:, :32].max() == green[:32].max() == 0


def test_nothing_that_speaks_for_a_class_is_no_map(image: Tensor) -> None:
    with pytest.raises(NoMapError, match="no place"):
        class_activation_map(_Colours(), _head([[-1, -1, -1]]), image, 0)


@given(seed=st.integers(0, 1000), side=st.integers(2, 5))
@settings(max_examples=20)
def test_places_that_are_weighed_one_by_one_count_with_their_own_weights(
    seed: int, side: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, side, side, generator=generator)
    weights = torch.randn(2, 3 * side * side, generator=generator)
    added = (weights.view(2, 3, side, side) * image.clamp(min=0)).sum(1)
    for index in range(2):
        if added[index].max() > 0:  # what places add to the logit, which is their sum
            expected = added[index].clamp(min=0) / added[index].max()
            heat = class_activation_map(_Places(), _head(weights.tolist()), image, index)
            torch.testing.assert_close(heat, expected)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "regnety_002"])
def test_with_a_linear_head_on_averages_it_is_cam(name: str) -> None:
    torch.manual_seed(3)
    backbone = create_backbone(name, image_size_px=96).eval()
    head = nn.Linear(describe_backbone(backbone).num_features, 3)
    maps: list[Tensor] = []
    pool = next(m for path, m in backbone.named_modules() if path.endswith("global_pool"))
    hook = pool.register_forward_hook(lambda _, inputs, __: maps.append(inputs[0]))
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        logits = head(backbone(image))[0]
    hook.remove()
    by_place = torch.einsum("ck,khw->chw", head.weight.detach(), maps[0][0])
    torch.testing.assert_close(by_place.mean((1, 2)), logits - head.bias.detach())
    heats = class_activation_maps(backbone, head, image.expand(3, -1, -1, -1), torch.arange(3))
    assert (by_place > 0).any()
    for heat, places in zip(heats, by_place, strict=True):
        np.testing.assert_allclose(heat, _enlarge(places, 96), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "head_name"),
    [*((name, size, "linear") for name, size in CONVNETS), ("nano", 32, "mlp")],
)
def test_a_place_counts_with_what_the_logit_loses_by_it(
    name: str, size: int, head_name: str
) -> None:
    torch.manual_seed(1)
    backbone = create_backbone(name, image_size_px=size)
    width = describe_backbone(backbone).num_features
    head = create_head(head_name, in_features=width, num_classes=4)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    network = Classifier(backbone, head).eval().requires_grad_(False).double()
    image = torch.randn(1, 3, size, size).double()
    with torch.inference_mode():  # as the server's caller may be
        maps = class_activation_maps(
            backbone, head, image.clone().expand(4, -1, -1, -1), torch.arange(4)
        )
    assert all(parameter.grad is None for parameter in network.parameters())
    evidence = _lost_by_place(backbone, head, image)
    assert (evidence > 0).any()
    for heat, places in zip(maps, evidence, strict=True):
        np.testing.assert_allclose(heat, _enlarge(places, size), atol=1e-4)


def _lost_by_place(backbone: nn.Module, head: nn.Module, image: Tensor) -> Tensor:
    """Fade each place of the last map by a little and back, ``[C, h, w]``: by differences."""
    with torch.no_grad():
        features = backbone.forward_features(image)
        logits = head(backbone.forward_head(features))
        torch.testing.assert_close(head(backbone(image)), logits)
        height, width = features.shape[2:]
        spots = torch.eye(height * width, dtype=features.dtype).view(-1, 1, height, width)
        up, down = (
            head(backbone.forward_head(features * (1 + change * spots))) for change in (1e-5, -1e-5)
        )
    return ((up - down) / 2e-5).T.reshape(-1, height, width)


def test_a_batch_gives_what_each_image_gives_alone() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("nano").eval()
    head = nn.Linear(describe_backbone(backbone).num_features, 3)
    images, indices = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 2, 1, 0])
    maps = class_activation_maps(backbone, head, images, indices)
    assert maps.shape == (6, 32, 32)
    for image, index, heat in zip(images, indices.tolist(), maps, strict=True):
        alone = class_activation_map(backbone, head, image.unsqueeze(0), index)
        torch.testing.assert_close(heat, alone, atol=1e-5, rtol=0)


def test_in_a_batch_images_without_a_map_are_zero(image: Tensor) -> None:
    images = torch.cat([image, image, torch.full_like(image, torch.nan)])
    heads = _head([[1, 0, 0], [-1, -1, -1]])
    maps = class_activation_maps(_Colours(), heads, images, torch.tensor([0, 1, 0]))
    assert [float(heat.max()) for heat in maps] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vit_tiny_patch16_224", 224, "no ConvNet"),
        ("swin_tiny_patch4_window7_224", 224, "channels come last"),
        ("gmlp_ti16_224", 224, "no ConvNet"),
        ("mambaout_femto", 64, "channels come last"),
    ],
)
def test_transformers_say_that_they_have_no_map(name: str, size: int, reason: str) -> None:
    backbone = create_backbone(name).eval()
    head = nn.Linear(describe_backbone(backbone).num_features, 2)
    with pytest.raises(NoMapError, match=reason):
        class_activation_map(backbone, head, torch.zeros(1, 3, size, size), 0)


def test_a_map_of_one_place_says_nothing_about_places() -> None:
    with pytest.raises(NoMapError, match="single place"):
        class_activation_map(_Colours(), _head([[1, 1, 1]]), torch.ones(1, 3, 8, 8), 0)


def test_another_backbone_has_no_map() -> None:
    with pytest.raises(NoMapError, match="does not give"):
        class_activation_map(nn.Flatten(), nn.Identity(), torch.ones(1, 3, 8, 8), 0)


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """Average Spearman's coefficient over images; a map that is zero is like no other."""
    values = [
        float(spearmanr(a.flatten(), b.flatten()).statistic) if a.any() and b.any() else 0.0
        for a, b in zip(one[:, ::4, ::4], other[:, ::4, ::4], strict=True)
    ]
    return float(np.mean(values))


def _shuffled(module: nn.Module, part: str = "") -> nn.Module:
    """Copy it, with each tensor's numbers in another order: as large as before, but unlearned."""
    copy = deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copy.get_submodule(part).parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copy


def test_other_random_weights_give_another_map() -> None:
    torch.manual_seed(0)
    backbone, images = create_backbone("nano").eval(), torch.randn(8, 3, 64, 64)
    head = nn.Linear(describe_backbone(backbone).num_features, 2)
    indices = torch.arange(8) % 2
    maps = class_activation_maps(backbone, head, images, indices)
    assert _rank_correlation(maps, maps) > 0.999
    other_head = class_activation_maps(backbone, _shuffled(head), images, indices)
    assert _rank_correlation(maps, other_head) < 0.5
    other_backbone = class_activation_maps(_shuffled(backbone), head, images, indices)
    assert _rank_correlation(maps, other_backbone) < 0.5


def test_on_photographs_the_map_depends_on_what_was_learned(real_data: Path) -> None:
    """Run the sanity checks of Adebayo et al. 2018: randomise the head, the top and all."""
    backbone = create_backbone(
        "resnet18", weights=real_data / "weights" / "resnet18_imagenet.safetensors"
    ).eval()
    info = describe_backbone(backbone)
    preprocess = Preprocess(
        224, "crop", info.crop_fraction, info.interpolation, info.mean, info.std
    )
    folders = [real_data / "data" / "hymenoptera" / "train" / name for name in ("ants", "bees")]
    files = [file for folder in folders for file in islice(sorted(folder.glob("*.jpg")), 4)]
    pixels = [torch.from_numpy(decode_image(file.read_bytes())) for file in files]
    images = torch.cat([preprocess(photo.permute(2, 0, 1)) for photo in pixels])
    classes = torch.arange(2).repeat_interleave(4)
    head = nn.Linear(info.num_features, 2)
    with torch.no_grad():  # learned from these few, by the difference of their means
        features = backbone(images)
        ants, bees = features[:4].mean(0), features[4:].mean(0)
        head.weight.copy_(torch.stack([ants - bees, bees - ants]))
    maps = class_activation_maps(backbone, head, images, classes)
    assert (maps.amax((1, 2)) == 1).all()
    randomised = {
        "head": (backbone, _shuffled(head)),
        "top": (_shuffled(backbone, "layer4"), head),
        "all": (_shuffled(backbone), head),
    }
    for what, parts in randomised.items():
        correlation = _rank_correlation(maps, class_activation_maps(*parts, images, classes))
        assert correlation < 0.5, what
