import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn

from finetune.errors import ConfigError
from finetune.training.optim import (
    check_optimizer,
    constant_factor,
    cosine_factor,
    create_optimizer,
    create_scheduler,
    onecycle_factor,
    parameter_groups,
    stage_rates,
)

rates = st.floats(1e-6, 1.0)
fractions = st.floats(0.01, 1.0)
finals = st.floats(0.0, 1.0)


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )


def two_parts(net):
    return {"stem": [*net[0].parameters(), *net[1].parameters()], "head": [*net[4].parameters()]}


@given(st.integers(1, 30), rates, fractions, fractions)
def test_rates_shrink_by_the_decay_from_stage_to_stage(num_stages, lr, factor, decay):
    result = stage_rates(num_stages, lr=lr, backbone_lr_factor=factor, layer_decay=decay)
    assert len(result) == num_stages
    assert result[-1] == pytest.approx(lr * factor)
    for lower, upper in pairwise(result):
        assert lower == pytest.approx(upper * decay)


def test_a_backbone_without_stages_has_no_rates():
    assert stage_rates(0, lr=0.1, backbone_lr_factor=1, layer_decay=0.5) == []


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 4), max_size=6), min_size=1),
    st.floats(0.0, 1.0),
)
def test_every_parameter_is_in_exactly_one_group(dimensions, weight_decay):
    parts = {
        name: [nn.Parameter(torch.zeros([2] * count)) for count in counts]
        for name, counts in dimensions.items()
    }
    rate_of = {name: 0.1 * (index + 1) for index, name in enumerate(parts)}
    groups = parameter_groups(parts, rate_of, weight_decay=weight_decay)

    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for part in parts.values() for p in part)
    assert all(group["params"] for group in groups)
    assert len({group["name"] for group in groups}) == len(groups)
    part_of = {id(p): name for name, part in parts.items() for p in part}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == rate_of[part_of[id(parameter)]]
            assert group["weight_decay"] == (weight_decay if parameter.ndim > 1 else 0.0)


def test_groups_keep_the_order_of_the_parts():
    groups = parameter_groups(two_parts(small_net()), {"stem": 1, "head": 2}, weight_decay=0.1)
    assert [group["name"] for group in groups] == [
        "stem",
        "stem, norms and biases",
        "head",
        "head, norms and biases",
    ]


def usable_optimizers():
    # Those of CUDA libraries and of second order have tests of their own below.
    return [
        name
        for name in map(str, list_optimizers())
        if not name.startswith(("bnb", "fused")) and not get_optimizer_info(name).second_order
    ]


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_every_other_optimizer_of_timm_steps_with_our_rates(tmp_path):
    names = usable_optimizers()
    assert len(names) > 60
    for name in names:
        if name.startswith("kron"):  # compiles with a C compiler at its first step
            continue
        torch.manual_seed(0)
        net = small_net()
        groups = parameter_groups(two_parts(net), {"stem": 0.01, "head": 0.1}, weight_decay=0.05)
        optimizer = create_optimizer(name, groups, lr=0.1, momentum=0.9)
        assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.1, 0.1], name
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == [0.05, 0.0, 0.05, 0.0], name
        before = net[4].weight.detach().clone()
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.randn(4, 3, 4, 4)).square().sum().backward()
            optimizer.step()
        assert not torch.equal(before, net[4].weight), name
        # What a checkpoint holds must be readable without unpickling.
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        torch.load(tmp_path / "optimizer.pt", weights_only=True)


@pytest.mark.parametrize("name", ["sgd", "sgdw", "nlars", "rmsprop", "adamw"])
def test_momentum_may_be_zero(name):
    net = small_net()
    groups = parameter_groups(two_parts(net), {"stem": 1, "head": 1}, weight_decay=0)
    optimizer = create_optimizer(name, groups, lr=1, momentum=0.0)
    assert all(group.get("momentum", 0) == 0 for group in optimizer.param_groups)
    net(torch.randn(4, 3, 4, 4)).square().sum().backward()
    optimizer.step()


def test_sgd_has_nesterov_momentum():
    groups = parameter_groups(two_parts(small_net()), {"stem": 1, "head": 1}, weight_decay=0)
    optimizer = create_optimizer("SGD", groups, lr=1, momentum=0.8)
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in optimizer.param_groups)


@pytest.mark.parametrize(("typo", "nearest"), [("adamv", "adam"), ("sdg", "sgd"), ("LAMP", "lamb")])
def test_an_unknown_optimizer_names_the_nearest(typo, nearest):
    with pytest.raises(ConfigError, match=f"optimizer.name: got `{typo}`.*Did you mean `{nearest}"):
        check_optimizer(typo)


def test_an_optimizer_of_second_order_is_refused():
    with pytest.raises(ConfigError, match="`adahessian`, which needs second derivatives"):
        check_optimizer("adahessian")


@pytest.mark.skipif(torch.cuda.is_available(), reason="may be usable on a GPU")
@pytest.mark.parametrize("name", ["bnbadamw8bit", "fusedadam"])
def test_an_optimizer_that_needs_cuda_is_refused_without_it(name):
    if name not in map(str, list_optimizers()):
        pytest.skip(f"this timm has no {name}")
    with pytest.raises(ConfigError, match=f"`{name}`, which cannot be used here"):
        check_optimizer(name)


@given(st.data())
def test_cosine_rises_then_falls_within_bounds(data):
    total = data.draw(st.integers(2, 500))
    warmup = data.draw(st.integers(0, total - 2))
    final = data.draw(finals)
    curve = [cosine_factor(step, total, warmup=warmup, final=final) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in curve)
    assert all(a < b for a, b in pairwise(curve[: warmup + 1]))
    falling = curve[warmup:]
    assert falling[0] == 1
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert curve[-1] == pytest.approx(final)
    # Lightning asks for one more step than it trains.
    assert cosine_factor(total, total, warmup=warmup, final=final) == pytest.approx(final)


@given(st.integers(2, 300), finals)
def test_cosine_after_warm_up_is_that_of_torch(total, final):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - 1, eta_min=2 * final)
    for step in range(total):
        ours = 2 * cosine_factor(step + 5, total + 5, warmup=5, final=final)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


@given(
    st.integers(2, 300),
    st.floats(0.01, 0.99),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
@example(10, 0.95, 0.1, 0.0)  # the fall is shorter than a step
def test_onecycle_is_that_of_torch(total, fraction, initial, final):
    final = max(final * initial, 1e-6)  # torch wants a ratio of two numbers > 0
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    if math.isclose(fraction * total, 1.0):  # torch divides by zero
        return
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total,
        pct_start=fraction,
        div_factor=1 / initial,
        final_div_factor=initial / final,
        cycle_momentum=False,
    )
    for step in range(total):
        ours = onecycle_factor(step, total, warmup_fraction=fraction, initial=initial, final=final)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        assert 0 <= ours <= 1 + 1e-12
        optimizer.step()
        if step < total - 1:
            theirs.step()
    assert ours == pytest.approx(final, abs=1e-6)


def test_onecycle_whose_rise_is_one_step_starts_low():
    factors = [
        onecycle_factor(step, 4, warmup_fraction=0.25, initial=0.1, final=0.0) for step in range(4)
    ]
    assert factors[0] == pytest.approx(0.1)
    assert factors[-1] == pytest.approx(0)


@given(st.integers(0, 100), st.integers(1, 100))
def test_constant_rises_to_one_and_stays(warmup, more):
    curve = [constant_factor(step, warmup=warmup) for step in range(warmup + more)]
    assert all(a < b for a, b in pairwise(curve[: warmup + 1]))
    assert all(0 < factor <= 1 for factor in curve)
    assert curve[warmup:] == [1.0] * more


SETTINGS = {
    "cosine": {"warmup_epochs": 1.5, "final_lr_factor": 0.01},
    "onecycle": {"warmup_fraction": 0.3, "initial_lr_factor": 0.04, "final_lr_factor": 0.0},
    "constant": {"warmup_epochs": 1.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_schedule_multiplies_the_rate_of_each_group(name):
    net = small_net()
    groups = parameter_groups(two_parts(net), {"stem": 0.02, "head": 0.2}, weight_decay=0)
    optimizer = create_optimizer("sgd", groups, lr=0.2, momentum=0)
    schedule = create_scheduler(
        optimizer, name, total_steps=40, total_epochs=4, settings=SETTINGS[name]
    )
    curve = []
    for _ in range(40):
        stem, _, head, _ = schedule.get_last_lr()
        assert head == pytest.approx(10 * stem)
        curve.append(head)
        optimizer.step()
        schedule.step()
    expected = {
        "cosine": [cosine_factor(s, 40, warmup=15, final=0.01) for s in range(40)],
        "onecycle": [
            onecycle_factor(s, 40, warmup_fraction=0.3, initial=0.04, final=0) for s in range(40)
        ],
        "constant": [constant_factor(s, warmup=15) for s in range(40)],
    }[name]
    assert curve == pytest.approx([0.2 * factor for factor in expected])
    assert max(curve) == pytest.approx(0.2)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_schedule_goes_on_where_its_state_says(name, tmp_path):
    def make():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        return create_scheduler(
            optimizer, name, total_steps=20, total_epochs=2, settings=SETTINGS[name]
        )

    first, second = make(), make()
    for _ in range(8):
        first.optimizer.step()
        first.step()
    torch.save(first.state_dict(), tmp_path / "schedule.pt")
    second.load_state_dict(torch.load(tmp_path / "schedule.pt", weights_only=True))
    for schedule in (first, second):
        schedule.optimizer.step()
        schedule.step()
    assert first.get_last_lr() == second.get_last_lr()
