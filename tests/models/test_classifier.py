import pytest
import torch

from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head


def _classifier(name: str) -> Classifier:
    torch.manual_seed(0)
    backbone = create_backbone(name)
    width = describe_backbone(backbone).num_features
    head = create_head("linear", in_features=width, num_classes=3)
    torch.nn.init.normal_(head.linear.weight)
    return Classifier(backbone, head).eval()


def test_logits_are_the_head_on_the_features():
    classifier = _classifier("nano")
    images = torch.randn(2, 3, 32, 32)
    features = classifier.features(images)
    assert features.shape == (2, 192)
    assert torch.equal(classifier(images), classifier.head(features))
    assert classifier(images).shape == (2, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize("name", ["nano", "resnet18"])
def test_scripted_equals_eager_exactly(name):
    classifier = _classifier(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        scripted = torch.jit.script(classifier)
        for _ in range(3):  # the profiling executor rewrites the graph after the first calls
            assert torch.equal(scripted(images), classifier(images))
            assert torch.equal(scripted.features(images), classifier.features(images))
