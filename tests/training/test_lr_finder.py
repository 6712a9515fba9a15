import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune.training.lr_finder import (
    find_rate,
    rate_step,
    restored,
    smooth_losses,
    suggest_rate,
)
from finetune.training.mixing import create_mix
from finetune.training.optim import create_optimizer, parameter_groups

RATES = np.geomspace(1e-6, 1.0, 100).tolist()


def valley(noise=0.0, seed=0, best=1e-2, start=1.0, fall=0.9):
    """A loss that is flat, falls from 1e-4 to ``best``, and then rises steeply."""
    rng = np.random.default_rng(seed)
    places = np.log10(RATES)
    way = np.clip((places + 4) / (math.log10(best) + 4), 0, 1)
    rise = np.clip(places - math.log10(best), 0, None)
    return (start - fall * way + 5 * rise**2 + noise * rng.standard_normal(100)).tolist()


# --- pure ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_the_running_mean_stays_within_what_it_has_seen(losses):
    smoothed = smooth_losses(losses)
    assert len(smoothed) == len(losses)
    assert smoothed[0] == pytest.approx(losses[0], abs=1e-9)
    for count, mean in enumerate(smoothed, start=1):
        assert min(losses[:count]) - 1e-6 <= mean <= max(losses[:count]) + 1e-6


def test_the_running_mean_follows_in_about_ten_steps():
    smoothed = smooth_losses([0.0] * 50 + [1.0] * 50)
    assert smoothed[49] == 0
    assert smoothed[50] < 0.2
    assert 0.5 < smoothed[60] < 0.8
    assert smoothed[-1] > 0.99


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 0.05), st.integers(0, 2**31), st.floats(1e-3, 1e-1))
def test_a_rate_is_suggested_where_the_loss_falls(noise, seed, best):
    curve = suggest_rate(RATES, valley(noise, seed, best))
    assert 1e-4 < curve.suggestion < best
    assert curve.suggestion in curve.rates
    assert "loss's fall" in curve.reason
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) == 100


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(0, 0.3), st.floats(0.5, 10))
def test_a_flat_loss_has_no_suggestion(seed, noise, level):
    rng = np.random.default_rng(seed)
    curve = suggest_rate(RATES, (level + noise * rng.standard_normal(100)).tolist())
    assert curve.suggestion is None
    assert "never falls clearly" in curve.reason


def test_a_loss_that_rises_from_the_start_has_no_suggestion():
    assert suggest_rate(RATES, np.linspace(1, 9, 100).tolist()).suggestion is None


@pytest.mark.parametrize("count", [0, 1, 9])
def test_few_steps_have_no_suggestion(count):
    curve = suggest_rate(RATES[:count], [1.0 - i / 10 for i in range(count)])
    assert curve.suggestion is None
    assert f"after {count} steps" in curve.reason


# --- the search ---------------------------------------------------------------------------------


def replay(losses):
    """A step that gives these losses one by one, and keeps the rates that it was asked for."""
    asked, left = [], iter(losses)

    def step(rate):
        asked.append(rate)
        return next(left)

    return step, asked


def test_rates_rise_by_the_same_factor():
    step, asked = replay([1.0] * 30)
    curve = find_rate(step, lowest=1e-5, highest=1e-2, num_steps=30)
    assert asked == pytest.approx(np.geomspace(1e-5, 1e-2, 30))
    assert curve.rates == tuple(asked)


def test_the_search_ends_where_the_loss_diverges():
    step, asked = replay([*np.linspace(1, 0.1, 50), *([50.0] * 50)])
    curve = find_rate(step)
    assert len(asked) == 51
    assert 0 < asked.index(curve.suggestion) < 50


def test_a_loss_near_zero_is_not_divergence_while_it_is_below_where_it_began():
    step, asked = replay([*np.linspace(1, 0.001, 60), *([0.5] * 40)])
    find_rate(step)
    assert len(asked) == 100


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_search_and_is_left_out(bad):
    step, asked = replay([*np.linspace(1, 0.1, 40), bad])
    curve = find_rate(step)
    assert len(asked) == 41
    assert len(curve.losses) == 40
    assert curve.suggestion is not None


@pytest.mark.parametrize(
    "wrong",
    [{"lowest": 0}, {"lowest": 1, "highest": 1}, {"num_steps": 9}, {"diverged_factor": 1}],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected rising rates"):
        find_rate(lambda rate: rate, **wrong)


# --- real steps ---------------------------------------------------------------------------------


def make_batches(count=3, size=4):
    generator = torch.Generator().manual_seed(1)
    shape = (size, 3, 32, 32)
    return [
        (
            torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            torch.arange(size) % 2,
        )
        for _ in range(count)
    ]


def make_optimizer(module, name="adamw", lr=1e-3):
    rates = dict.fromkeys(module.parts(), lr / 10) | {"head": lr}
    groups = parameter_groups(module.parts(), rates, weight_decay=0.01)
    return create_optimizer(name, groups, lr=lr, momentum=0.9)


def everything(module):
    values = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in values}


def generators():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


def same(before, after):
    # Of the bits: NaN equals NaN, and 0.0 is not -0.0.
    return before.keys() == after.keys() and all(
        before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before
    )


class NotFinite(nn.Module):
    def forward(self, logits, _):
        return logits.sum() * math.nan


@pytest.mark.parametrize(("name", "dtype"), [("adamw", None), ("sgd", torch.bfloat16)])
def test_all_is_as_before_bit_by_bit(make_module, name, dtype):
    mix = create_mix(mixup_alpha=0.4, cutmix_alpha=0.0, num_classes=2)
    module = make_module("none", dropout=0.3, mix=mix).eval()
    optimizer = make_optimizer(module, name)
    before, state = everything(module), repr(optimizer.state_dict())
    drawn = generators()
    with rate_step(module, optimizer, make_batches(), dtype=dtype, gradient_clip=1.0) as step:
        find_rate(step, num_steps=10)
        during = everything(module)
        assert torch.get_rng_state().tolist() != drawn[0]  # of dropout
    changed = {key for key in before if not torch.equal(before[key], during[key])}
    assert any("running_mean" in key for key in changed)
    assert any("head" in key for key in changed)
    assert same(before, everything(module))
    assert repr(optimizer.state_dict()) == state
    assert generators() == drawn
    assert not any(part.training for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_all_is_as_before_also_after_an_error(make_module):
    module = make_module("none")
    before, drawn = everything(module), generators()
    during = []

    def search():
        with rate_step(module, make_optimizer(module), make_batches()) as step:
            step(0.1)
            during.append(everything(module))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search()
    assert not same(before, during[0])
    assert same(before, everything(module))
    assert generators() == drawn


def test_a_frozen_backbone_stays_as_it_is_during_the_search(make_module):
    module = make_module("backbone")
    before = everything(module)
    with rate_step(module, make_optimizer(module), make_batches()) as step:
        step(0.1)
        after = everything(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"classifier.head.linear.weight"}


def test_a_rate_of_the_head_moves_all_groups_in_proportion(make_module):
    module = make_module("none")
    optimizer = make_optimizer(module, lr=1e-3)
    with rate_step(module, optimizer, make_batches()) as step:
        step(0.5)
        assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.5}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4, 1e-3}


def test_steps_are_those_of_plain_training(make_module):
    module, other = make_module("none"), make_module("none")
    optimizer = make_optimizer(other, "sgd", lr=0.05)
    other.train()
    expected = []
    for images, targets in make_batches():
        loss = other.loss(other(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    with rate_step(module, make_optimizer(module, "sgd"), make_batches()) as step:
        assert [step(0.05) for _ in range(3)] == pytest.approx(expected)
        assert math.isfinite(step(0.05))  # the batches start again


def test_a_loss_that_is_no_number_takes_no_step(make_module):
    module = make_module("none")
    before = dict(module.named_parameters())["classifier.head.linear.weight"].clone()
    module.loss = NotFinite()
    with rate_step(module, make_optimizer(module), make_batches()) as step:
        assert math.isnan(step(0.1))
        assert torch.equal(module.classifier.head.linear.weight, before)


@pytest.mark.parametrize("batches", [[], iter(make_batches(1))])
def test_batches_that_run_out_are_refused(make_module, batches):
    module = make_module("none")

    def search():
        with rate_step(module, make_optimizer(module), batches) as step:
            step(0.1)
            step(0.1)

    with pytest.raises(ValueError, match="batches: got none"):
        search()


def test_a_head_that_does_not_learn_is_refused(make_module):
    module = make_module("none")
    optimizer = make_optimizer(module)
    optimizer.param_groups[-1]["lr"] = 0.0
    with pytest.raises(ValueError, match="expected one > 0"), rate_step(module, optimizer, []):
        pass


def test_gradients_and_hidden_buffers_are_restored_too():
    part = nn.Linear(2, 1)
    part.register_buffer("hidden", torch.tensor([math.nan, -0.0]), persistent=False)
    part(torch.ones(1, 2)).sum().backward()
    before, gradient = everything(part), part.weight.grad.clone()
    with restored(part):
        assert part.weight.grad is None
        part(torch.zeros(1, 2)).sum().backward()
        part.hidden.zero_()
        random.random()
        np.random.random()
    assert same(before, everything(part))
    assert torch.equal(part.weight.grad, gradient)
