"""What a network costs."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.models.cost import (
    LEAST_REPEATS,
    MOST_REPEATS,
    WARM_UP,
    count_flops,
    count_parameters,
    median_seconds,
)


class Attention(nn.Module):
    """One head over the 16 pixels of a 4 px image, each a token of 8 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 8, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.project(images.flatten(2).transpose(1, 2)).unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_parameters_count_frozen_or_not_and_buffers_do_not():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network[0].requires_grad_(False)
    assert count_parameters(network) == (3 * 4 * 9 + 4) + (4 + 4)


@pytest.mark.parametrize(
    ("network", "flops"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 2 * 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 2 * 8 * 8 * 6 * 9),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 2 * 192 * 5),
        (nn.ReLU(), 0),
    ],
)
def test_a_multiply_add_counts_as_two(network, flops):
    assert count_flops(network, 8) == flops


def test_attention_counts_its_two_products():
    assert count_flops(Attention(), 4) == 2 * 16 * 3 * 8 + 2 * (2 * 16 * 16 * 8)


def test_resnet18_costs_what_is_published():
    # He et al. 2016, table 1: 1.8e9 multiply-adds; torchvision: 11.69 M with its 1000 classes.
    network = timm.create_model("resnet18")
    assert count_flops(network, 224) == pytest.approx(2 * 1.8e9, rel=0.02)
    assert count_parameters(network) == 11_689_512


def test_counting_changes_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_flops(network, 8)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Clock:
    """A clock that goes on only while somebody answers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[str] = []

    def answer(self, name: str, seconds: float) -> Callable[[], None]:
        def act() -> None:
            self.asked.append(name)
            # The first ones, and one stumble, would spoil a mean.
            is_odd = self.asked.count(name) in (1, 2, 3, 7)
            self.now += 3 * seconds if is_odd else seconds

        return act


@pytest.mark.parametrize(
    ("seconds", "most"), [(5.0, LEAST_REPEATS), (0.2, 15), (0.001, MOST_REPEATS)]
)
def test_the_median_of_ten_to_fifty_answers_after_three(seconds, most, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("finetune.models.cost.time.perf_counter", lambda: clock.now)
    assert median_seconds([clock.answer("a", seconds)]) == pytest.approx([seconds])
    assert LEAST_REPEATS <= len(clock.asked) - WARM_UP <= most


def test_several_are_asked_by_turns(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("finetune.models.cost.time.perf_counter", lambda: clock.now)
    found = median_seconds([clock.answer("a", 1.0), clock.answer("b", 2.0)])
    assert found == pytest.approx([1.0, 2.0])
    assert clock.asked == ["a", "b"] * (WARM_UP + LEAST_REPEATS)


def test_nothing_takes_no_time():
    assert median_seconds([]) == []
