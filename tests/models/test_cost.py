"""What a network costs."""

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.models import cost
from finetune.models.cost import count_flops, count_parameters, median_seconds


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


@pytest.mark.parametrize(
    ("each", "timed"), [(1.0, cost.LEAST_REPEATS), (0.2, 15), (0.001, cost.MOST_REPEATS)]
)
def test_the_median_of_ten_to_fifty_answers_after_three(each, timed, monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    def answer() -> None:
        asked.append(None)
        # The ones before, and a stumble, would spoil a mean.
        is_odd = len(asked) <= cost.WARM_UP or len(asked) == 5
        now[0] += 0.4 if is_odd and each < 1 else each

    assert median_seconds(answer) == pytest.approx(each)
    assert abs(len(asked) - cost.WARM_UP - timed) <= 1
