import math

import pytest
import torch

from finetune.errors import ConfigError
from finetune.models.heads import CosineHead, HeadName, LinearHead, MlpHead, create_head

NAMES: tuple[HeadName, ...] = ("linear", "mlp", "cosine")
FEATURES = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))

script_is_deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")


@pytest.mark.parametrize(
    ("name", "kind"), [("linear", LinearHead), ("mlp", MlpHead), ("cosine", CosineHead)]
)
def test_name_gives_its_class_and_logits_have_one_column_per_class(name, kind):
    head = create_head(name, in_features=12, num_classes=7)
    assert type(head) is kind
    assert head(FEATURES).shape == (5, 7)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_first_loss_is_log_of_the_number_of_classes(name):
    head = create_head(name, in_features=12, num_classes=7)
    loss = torch.nn.functional.cross_entropy(head(FEATURES * 1000), torch.arange(5))
    assert loss.item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("name", NAMES)
def test_learns_to_tell_classes_apart(name):
    torch.manual_seed(0)
    head = create_head(name, in_features=12, num_classes=5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    labels = torch.arange(5)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(FEATURES), labels).backward()
        optimizer.step()
    assert head(FEATURES).argmax(dim=1).tolist() == labels.tolist()


@script_is_deprecated
@pytest.mark.parametrize("name", NAMES)
def test_scripted_equals_eager(name):
    torch.manual_seed(0)
    head = create_head(name, in_features=12, num_classes=4, dropout=0.3).eval()
    torch.nn.init.normal_(head.linear.weight)
    assert torch.equal(torch.jit.script(head)(FEATURES), head(FEATURES))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name):
    torch.manual_seed(0)
    head = create_head(name, in_features=12, num_classes=4, dropout=0.5)
    torch.nn.init.normal_(head.linear.weight)
    assert not torch.equal(head(FEATURES), head(FEATURES))
    head.eval()
    assert torch.equal(head(FEATURES), head(FEATURES))


def test_cosine_logits_ignore_the_length_of_features_and_stay_within_the_scale():
    head = CosineHead(12, 4, scale=8.0)
    with torch.no_grad():
        head.linear.weight[0] = FEATURES[0] * 3
    logits = head(FEATURES)
    torch.testing.assert_close(head(FEATURES * 100), logits)
    assert logits[0, 0].item() == pytest.approx(8.0)
    assert logits.abs().max().item() <= 8.0 + 1e-5
    assert torch.isfinite(head(torch.zeros(1, 12))).all()


def test_the_default_scale_allows_a_loss_below_one_in_a_thousand_for_1000_classes():
    # The bound of NormFace, proposition 2, which the docstring leans on.
    scale = CosineHead(2, 2).scale
    num_classes = 1000
    bound = math.log1p((num_classes - 1) * math.exp(-scale * num_classes / (num_classes - 1)))
    assert bound < 1e-3


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("linear", {"dropout": 1.0}, "head.dropout: got 1.0"),
        ("mlp", {"dropout": -0.1}, "head.dropout: got -0.1"),
        ("cosine", {"dropout": math.nan}, "head.dropout: got nan"),
        ("mlp", {"hidden_features": 0}, "head.hidden_features: got 0"),
        ("cosine", {"scale": 0.0}, "head.scale: got 0.0"),
        ("cosine", {"scale": math.inf}, "head.scale: got inf"),
        ("linear", {"num_classes": 1}, "head.num_classes: got 1"),
        ("linear", {"in_features": 0}, "head.in_features: got 0"),
    ],
)
def test_arguments_out_of_range_are_named(name, arguments, key):
    with pytest.raises(ConfigError, match=key):
        create_head(name, **{"in_features": 12, "num_classes": 4, **arguments})
