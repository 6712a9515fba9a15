from functools import cache

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune.errors import ConfigError
from finetune.models.backbones import create_backbone
from finetune.models.freezing import (
    Freezing,
    apply_frozen_mode,
    backbone_stages,
    batchnorm_parameters,
    check_freezing,
    has_batchnorm,
    open_stages,
    set_frozen,
    stage_indices,
)

FAMILIES = (
    "nano",
    "resnet18",
    "resnetv2_50",
    "densenet121",
    "vgg11_bn",
    "mobilenetv3_small_050",
    "convnext_atto",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "inception_v3",
    "swin_tiny_patch4_window7_224",
    "coat_tiny",  # shares modules between stages
    "rdnet_tiny",  # refuses a coarse split
)


@cache
def _on_meta(name: str) -> nn.Module:
    """Build without memory or time: these tests look at names only."""
    with torch.device("meta"):
        return create_backbone(name) if name == "nano" else timm.create_model(name, num_classes=0)


@pytest.mark.parametrize("name", ["resnet18", "nano"])
def test_a_resnet_has_five_stages_from_input_to_output(name):
    stages = backbone_stages(_on_meta(name))
    assert [stage.name for stage in stages] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert all(p.startswith("layer2.") for p in stages[2].parameter_names)
    assert {"conv1", "bn1"} <= set(stages[0].module_names)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_and_module_is_in_exactly_one_stage(name):
    backbone = _on_meta(name)
    stages = backbone_stages(backbone)
    parameter_names = [p for stage in stages for p in stage.parameter_names]
    module_names = [m for stage in stages for m in stage.module_names]
    assert sorted(parameter_names) == sorted(p for p, _ in backbone.named_parameters())
    assert sorted(module_names) == sorted(m for m, _ in backbone.named_modules())
    assert len({stage.name for stage in stages}) == len(stages)
    assert all(stage.parameter_names for stage in stages)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_is_never_in_an_earlier_stage_than_its_parameters(name):
    backbone = _on_meta(name)
    stages = backbone_stages(backbone)
    index_of = {m: i for i, stage in enumerate(stages) for m in stage.module_names}
    by_id = {id(backbone.get_parameter(p)): i for p, i in stage_indices(stages).items()}
    for module_name, module in backbone.named_modules():
        inner = [by_id[id(p)] for p in module.parameters()]
        assert not inner or index_of[module_name] == max(inner)


def test_stages_follow_the_order_of_parameters():
    for name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224"):
        indices = stage_indices(backbone_stages(_on_meta(name)))
        ordered = [indices[p] for p, _ in _on_meta(name).named_parameters()]
        assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    ("name", "last_norm", "last_stage"),
    [
        ("resnetv2_50", "norm.weight", "stages.3"),
        ("densenet121", "features.norm5.weight", "features.denseblock4"),
        ("convnext_atto", "head.norm.weight", "stages.3"),
        ("vit_tiny_patch16_224", "norm.weight", "blocks.11"),
        ("swin_tiny_patch4_window7_224", "norm.weight", "layers.3"),
    ],
)
def test_a_final_norm_belongs_to_the_last_stage(name, last_norm, last_stage):
    last = backbone_stages(_on_meta(name))[-1]
    assert last.name == last_stage
    assert last_norm in last.parameter_names


@pytest.mark.parametrize("name", ["rdnet_tiny", "plain"])
def test_a_backbone_without_a_split_is_one_stage(name):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Dropout())
    backbone = plain if name == "plain" else _on_meta(name)
    (stage,) = backbone_stages(backbone)
    assert stage.name == "backbone"
    assert len(stage.module_names) == len(list(backbone.modules()))


class _Tricky(nn.Module):
    """Modules that a split by parameters alone would miss."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.unlearned = nn.BatchNorm2d(4, affine=False)
        self.drop = nn.Dropout(0.5)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False))

    def group_matcher(self, coarse: bool) -> dict[str, str]:
        assert coarse
        return {"stem": r"^conv1", "blocks": r"^layer(\d+)"}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.drop(self.unlearned(self.conv1(images)))
        return self.layer2(self.layer1(stem)).mean((2, 3))


def test_modules_without_parameters_follow_the_module_before_them():
    stem, layer1, layer2 = backbone_stages(_Tricky())
    assert stem.module_names == ("conv1", "unlearned", "drop")
    assert layer1.module_names == ("layer1", "layer1.0", "layer1.1", "layer1.2")
    assert layer2.module_names == ("", "layer2", "layer2.0", "layer2.1")


def _train_two_steps(backbone: nn.Module) -> None:
    optimizer = torch.optim.SGD(
        [p for p in backbone.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(2):
        optimizer.zero_grad()
        backbone(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("make", [_Tricky, lambda: create_backbone("nano")])
def test_training_changes_open_stages_and_not_one_bit_of_frozen_ones(make):
    torch.manual_seed(0)
    backbone = make()
    stages = backbone_stages(backbone)
    num_frozen = len(stages) - 1
    set_frozen(backbone, stages, num_frozen)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}

    backbone.train()  # what Lightning calls at the start of every epoch
    apply_frozen_mode(backbone, stages, num_frozen)
    _train_two_steps(backbone)

    frozen = {m for stage in stages[:num_frozen] for m in stage.module_names}
    after = backbone.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k for k in changed if k.rpartition(".")[0] in frozen} == set()
    opened = {k for k in before if k.rpartition(".")[0] not in frozen}
    assert changed == opened


def test_without_the_mode_frozen_statistics_would_move():
    backbone = create_backbone("nano")
    stages = backbone_stages(backbone)
    set_frozen(backbone, stages, len(stages))
    before = backbone.bn1.running_mean.clone()
    backbone.train()
    backbone(torch.randn(4, 3, 32, 32) + 5)
    assert not torch.equal(before, backbone.bn1.running_mean)


def test_features_of_frozen_stages_are_the_same_in_each_pass():
    backbone = _Tricky()
    stages = backbone_stages(backbone)
    images = torch.randn(2, 3, 8, 8)
    apply_frozen_mode(backbone, stages, 3)
    assert torch.equal(backbone(images), backbone(images))
    assert not any(module.training for module in backbone.modules())
    apply_frozen_mode(backbone, stages, 0)
    assert all(module.training for module in backbone.modules())
    assert not torch.equal(backbone(images), backbone(images))


def test_freezing_can_be_taken_back_and_drops_stale_gradients():
    backbone = create_backbone("nano")
    stages = backbone_stages(backbone)
    backbone(torch.randn(2, 3, 32, 32)).sum().backward()
    for num_frozen in (5, 2, 0, 3):
        set_frozen(backbone, stages, num_frozen)
        for name, index in stage_indices(stages).items():
            parameter = backbone.get_parameter(name)
            assert parameter.requires_grad == (index >= num_frozen)
            assert index >= num_frozen or parameter.grad is None


@pytest.mark.parametrize("num_frozen", [-1, 6])
@pytest.mark.parametrize("function", [set_frozen, apply_frozen_mode])
def test_an_impossible_count_is_refused(function, num_frozen):
    backbone = _on_meta("nano")
    with pytest.raises(ValueError, match=f"got {num_frozen}, expected 0 to 5"):
        function(backbone, backbone_stages(backbone), num_frozen)


def test_gradual_opens_the_head_first_and_then_one_stage_at_a_time():
    gradual = Freezing("gradual", epochs_per_stage=2)
    opened = [open_stages(gradual, epoch=epoch, num_stages=3) for epoch in range(10)]
    assert opened == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]


@given(
    epoch=st.integers(0, 1000),
    num_stages=st.integers(0, 60),
    epochs_per_stage=st.integers(1, 50),
    kept=st.integers(0, 70),
)
def test_open_stages_stay_in_range_and_never_close_again(epoch, num_stages, epochs_per_stage, kept):
    def opened(policy, epoch):
        freezing = Freezing(policy, epochs_per_stage, stages=kept)
        return open_stages(freezing, epoch=epoch, num_stages=num_stages)

    most = max(0, num_stages - kept)
    for policy in ("none", "probe_then_finetune", "batchnorm_only"):
        assert opened(policy, epoch) == most
    assert opened("backbone", epoch) == 0
    now, then = opened("gradual", epoch), opened("gradual", epoch + 1)
    assert 0 <= now <= then <= min(most, now + 1)


def test_epochs_per_stage_must_be_positive():
    with pytest.raises(ConfigError, match=r"freeze\.epochs_per_stage: got 0"):
        open_stages(Freezing("gradual", epochs_per_stage=0), epoch=0, num_stages=3)


def test_nothing_left_to_learn_is_refused():
    backbone = _on_meta("nano")
    stages = backbone_stages(backbone)
    for policy in ("none", "probe_then_finetune", "gradual", "batchnorm_only"):
        check_freezing(backbone, stages, Freezing(policy, stages=4))
        with pytest.raises(ConfigError, match=r"freeze\.stages: got 5, but .* has 5 stages"):
            check_freezing(backbone, stages, Freezing(policy, stages=5))
    check_freezing(backbone, stages, Freezing("backbone", stages=5))


def test_batchnorm_only_needs_batchnorm():
    with_none = _on_meta("vit_tiny_patch16_224")
    assert batchnorm_parameters(with_none) == set()
    assert not has_batchnorm(with_none)
    with pytest.raises(ConfigError, match=r"batchnorm_only, but this backbone has no BatchNorm"):
        check_freezing(with_none, backbone_stages(with_none), Freezing("batchnorm_only"))


@pytest.mark.parametrize("num_frozen", [0, 2])
def test_batchnorm_only_moves_batchnorm_of_open_stages_and_nothing_else(num_frozen):
    torch.manual_seed(0)
    backbone = create_backbone("nano")
    stages = backbone_stages(backbone)
    set_frozen(backbone, stages, num_frozen, only_batchnorm=True)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.train()
    apply_frozen_mode(backbone, stages, num_frozen)
    _train_two_steps(backbone)

    norms = {
        name
        for stage in stages[num_frozen:]
        for name in stage.module_names
        if isinstance(backbone.get_submodule(name), nn.BatchNorm2d)
    }
    after = backbone.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if k.rpartition(".")[0] in norms}


def test_frozen_batchnorm_keeps_its_statistics_and_learns_its_weights():
    torch.manual_seed(0)
    backbone = create_backbone("nano")
    stages = backbone_stages(backbone)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.train()
    apply_frozen_mode(backbone, stages, 0, batchnorm="frozen")
    _train_two_steps(backbone)
    after = backbone.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {name for name, _ in backbone.named_parameters()}
