import copy

import pytest
import torch
from torch import nn

from finetune.models.backbones import create_backbone
from finetune.models.freezing import Stage, apply_frozen_mode, backbone_stages, set_frozen
from finetune.models.prefix import NoSplit, Split, split_backbone

# Name, side in pixels, and how many stages to freeze; None tries every number. vgg11 splits as
# well, but takes seconds: 130 million parameters.
MODELS = (
    ("nano", 32, None),
    ("resnet18", 32, (1, 3)),
    ("resnet50", 32, (2,)),
    ("resnetv2_50", 32, (3,)),
    ("convnext_atto", 32, (2,)),
    ("efficientnet_b0", 32, (4,)),
    ("densenet121", 32, (3,)),
    ("mobilenetv3_small_100", 32, (3, 7)),
    ("vit_tiny_patch16_224", 32, (6,)),
    ("regnetx_002", 32, (2,)),
    ("swin_tiny_patch4_window7_224", 56, (3,)),
)
FIXED_SIZE = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")


def make(name, size_px=32):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size_px=size_px if name in FIXED_SIZE else None)
    return backbone, backbone_stages(backbone)


def images(size_px=32, count=2):
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def cut(backbone, stages, num_frozen, size_px=32):
    split = split_backbone(backbone, stages, num_frozen, example=images(size_px))
    assert isinstance(split, Split), split.reason
    return split


@pytest.mark.parametrize(("name", "size_px", "numbers"), MODELS, ids=[m[0] for m in MODELS])
def test_every_family_splits_to_the_last_bit(name, size_px, numbers):
    backbone, stages = make(name, size_px)
    backbone.eval()
    x = images(size_px, count=3)
    for num_frozen in numbers or range(1, len(stages) + 1):
        split = split_backbone(backbone, stages, num_frozen, example=images(size_px))
        what = f"{name}, {num_frozen} of {len(stages)} frozen: "
        if isinstance(split, NoSplit):
            print(what + split.reason)
        assert isinstance(split, Split), split.reason
        with torch.no_grad():
            activations = split.prefix(x)
            print(what + str(list(activations.shape[1:])))
            assert torch.equal(split.suffix(activations), backbone(x))
        is_open = {p for stage in stages[num_frozen:] for p in stage.parameter_names}
        own = {id(p): n for n, p in backbone.named_parameters()}
        assert {own[id(p)] for p in split.suffix.parameters()} == is_open
        assert {own[id(p)] for p in split.prefix.parameters()} == set(own.values()) - is_open


@pytest.mark.parametrize(
    ("name", "num_frozen"), [("nano", 2), ("vit_tiny_patch16_224", 5), ("mobilenetv3_small_100", 4)]
)
def test_the_suffix_learns_as_the_whole_does(name, num_frozen):
    backbone, stages = make(name)
    set_frozen(backbone, stages, num_frozen)
    backbone.train()
    apply_frozen_mode(backbone, stages, num_frozen)
    twin = copy.deepcopy(backbone)
    split = cut(twin, stages, num_frozen)
    optimizers = [
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
        for model in (backbone, twin)
    ]
    for step in range(3):
        x = images(count=4) + step
        backbone(x).square().mean().backward()
        with torch.no_grad():
            activations = split.prefix(x)
        split.suffix(activations).square().mean().backward()
        for (key, expected), got in zip(
            backbone.named_parameters(), twin.parameters(), strict=True
        ):
            assert (expected.grad is None) == (got.grad is None)
            assert expected.grad is None or torch.equal(expected.grad, got.grad), key
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    # Running statistics too: open ones moved, frozen ones stood still.
    fresh = make(name)[0].state_dict()
    moved = {key for key, value in twin.state_dict().items() if not torch.equal(value, fresh[key])}
    frozen = {name for stage in stages[:num_frozen] for name in stage.module_names}
    assert moved
    assert not {key for key in moved if key.rpartition(".")[0] in frozen - {""}}
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


def test_splitting_leaves_the_backbone_as_it_was():
    backbone, stages = make("nano")
    backbone.train()
    apply_frozen_mode(backbone, stages, 3)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    children = list(backbone.modules())
    rng = torch.get_rng_state()
    cut(backbone, stages, 3)
    assert modes == [module.training for module in backbone.modules()]
    assert children == list(backbone.modules())
    assert torch.equal(rng, torch.get_rng_state())
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_prefix_costs_only_itself():
    backbone, stages = make("nano")
    split = cut(backbone, stages, 3)
    called = []
    for name, module in backbone.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    split.prefix(images())
    prefix_calls, called[:] = set(called), []
    split.suffix(split.prefix(images()).clone())
    assert not any(name.startswith(("layer3", "layer4")) for name in prefix_calls)
    assert any(name.startswith("layer2") for name in prefix_calls)
    assert any(name.startswith("layer4") for name in called)


def test_moving_the_backbone_moves_both_parts():
    backbone, stages = make("nano")
    split = cut(backbone, stages, 2)
    backbone.to(torch.float64).eval()
    x = images().double()
    assert torch.equal(split.suffix(split.prefix(x)), backbone(x))


def test_a_copied_part_of_the_suffix_follows_the_mode_of_the_backbone():
    class Dropping(nn.Sequential):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, training=self.training)

    backbone = Dropping(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten())
    split = cut(backbone, two_stages(backbone), 1)
    for mode in (True, False):
        backbone.train(mode)
        features = split.suffix(split.prefix(images()))
        assert bool((features == 0).any()) is mode


def two_stages(backbone, first="0"):
    def of(names, in_first):
        return tuple(n for n in names if (n.split(".")[0] in first.split()) is in_first)

    parameters = [n for n, _ in backbone.named_parameters()]
    modules = [n for n, _ in backbone.named_modules()]
    return tuple(
        Stage(name, of(parameters, is_first), of(modules, is_first))
        for name, is_first in (("stem", True), ("rest", False))
    )


class Odd(nn.Module):
    """Two convolutions and something between them, or around."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a = nn.Conv2d(3, 3, 1)
        self.b = nn.Conv2d(3, 3, 1)
        self.gate = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.zeros_(self.gate.weight)
        if kind == "loose":
            self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        y = self.a(x)
        match self.kind:
            case "skip":
                y = self.b(y) + x
            case "gated skip":  # equal as long as the gate is shut
                y = self.b(y) + self.gate(self.a(y) - x)
            case "double":
                y = self.b(2 * y)
            case "dropout":  # equal in eval mode
                y = self.b(self.a(nn.functional.dropout(x, 0.5, training=self.training)))
            case "loose":  # equal as long as the shift is zero
                y = self.b(y + self.shift)
            case "backwards":
                y = self.a(self.b(x))
            case "raises":
                y = self.b(y.reshape(self.a.missing))
        return y.mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("skip", "do not give"),
        ("gated skip", "do not give"),
        ("double", "do not give"),
        ("dropout", "in train mode"),
        ("loose", "shift"),
        ("backwards", "do not give"),
        ("raises", "missing"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_a_reason(kind, reason):
    backbone = Odd(kind)
    outcome = split_backbone(backbone, two_stages(backbone, "a"), 1, example=images())
    assert isinstance(outcome, NoSplit)
    assert reason in outcome.reason


def test_several_tensors_at_the_boundary_are_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)
            self.b = nn.Bilinear(8, 8, 8)

        def forward(self, x):
            return self.b(self.a(x), x).mean((2, 3))

    backbone = Two()
    outcome = split_backbone(backbone, two_stages(backbone, "a"), 1, example=images(8))
    assert isinstance(outcome, NoSplit)
    assert "more than one tensor" in outcome.reason


def test_with_nothing_frozen_there_is_nothing_to_cut_off():
    backbone, stages = make("nano")
    assert split_backbone(backbone, stages, 0, example=images()) == NoSplit("no stage is frozen")
    with pytest.raises(ValueError, match="expected 0 to 5"):
        split_backbone(backbone, stages, 6, example=images())
