"""The map shows the place that decides, and follows the head."""

import pytest
import torch
from torch import Tensor, nn

from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.serving.explain import NoMapError, class_activation_map


class _Colours(nn.Module):
    """A backbone by hand: its map has a channel for each colour, in fields of 8 pixels."""

    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


def _head(weights: list[list[float]]) -> nn.Linear:
    head = nn.Linear(3, len(weights), bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weights))
    return head.requires_grad_(False)


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


def test_the_map_changes_when_the_head_is_randomised(image: Tensor) -> None:
    learned = class_activation_map(_Colours(), _head([[1, -1, 0], [-1, 1, 0]]), image, 0)
    random = class_activation_map(_Colours(), _head([[-0.3, 0.9, 0.2], [0.5, 0.1, 0]]), image, 0)
    assert random[-8, -8] > 0.9 > 0.1 > learned[-8, -8]


def test_nothing_that_speaks_for_a_class_is_no_map(image: Tensor) -> None:
    with pytest.raises(NoMapError, match="no place"):
        class_activation_map(_Colours(), _head([[-1, -1, -1]]), image, 0)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("nano", 64),
        ("resnet18", 64),
        ("mobilenetv3_small_050", 64),
        ("efficientnet_b0", 64),
        ("convnext_atto", 64),
        ("densenet121", 64),
        ("resnetv2_50", 64),
    ],
)
@pytest.mark.parametrize("head_name", ["linear", "mlp"])
def test_convnets_give_a_map_without_gradients_of_parameters(
    name: str, size: int, head_name: str
) -> None:
    torch.manual_seed(1)
    backbone = create_backbone(name, image_size_px=size)
    width = describe_backbone(backbone).num_features
    head = create_head(head_name, in_features=width, num_classes=4)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    network = Classifier(backbone, head).eval().requires_grad_(False)
    image = torch.randn(1, 3, size, size)
    maps = []
    for index in range(4):
        try:
            with torch.inference_mode():  # as the server's caller may be
                maps.append(class_activation_map(backbone, head, image.clone(), index))
        except NoMapError as error:
            assert "speaks" in str(error)  # noqa: PT017 - a class against which all speaks
    assert maps
    assert all(heat.shape == (size, size) and heat.isfinite().all() for heat in maps)
    assert all(0 <= heat.min() < heat.max() <= 1 for heat in maps)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_say_that_they_have_no_map(name: str) -> None:
    backbone = create_backbone(name).eval()
    head = nn.Linear(describe_backbone(backbone).num_features, 2)
    with pytest.raises(NoMapError, match="no ConvNet"):
        class_activation_map(backbone, head, torch.zeros(1, 3, 224, 224), 0)


def test_a_map_of_one_place_says_nothing_about_places() -> None:
    with pytest.raises(NoMapError, match="single place"):
        class_activation_map(_Colours(), _head([[1, 1, 1]]), torch.ones(1, 3, 8, 8), 0)


def test_another_backbone_has_no_map() -> None:
    with pytest.raises(NoMapError, match="does not give"):
        class_activation_map(nn.Flatten(), nn.Identity(), torch.ones(1, 3, 8, 8), 0)
