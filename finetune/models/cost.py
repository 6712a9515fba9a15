"""What a network costs to use: parameters, operations, and how long one image takes here."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 3
"""Answers that are not timed: the first ones allocate, and choose their kernels."""
LEAST_REPEATS = 10
MOST_REPEATS = 50
SECONDS_ENOUGH = 3.0
"""From ``LEAST_REPEATS`` on, timing ends after so long."""


def count_parameters(network: nn.Module) -> int:
    """Count the numbers that training could change, frozen or not; buffers are left out."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def count_flops(network: nn.Module, image_size_px: int) -> int:
    """Count the floating-point operations of one image, where a multiply-add counts as two.

    Convolutions and matrix products (linear layers, attention) are counted, nothing else. Half of
    the count are multiply-adds (MACs), which many texts on networks call FLOPs.

    Args:
        network: takes ``[1, 3, S, S]``; its mode (training or not) stays as it is.
        image_size_px: the side S.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    was_training = network.training
    network.eval()  # one image has no BatchNorm statistics
    try:
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, image_size_px, image_size_px, device=device))
    finally:
        network.train(was_training)
    return int(counter.get_total_flops())


def median_seconds(answer: Callable[[], object]) -> float:
    """Time an answer: the median of 10 to 50, after 3 that do not count.

    Torch's threads stay as they are. What is still running on a GPU when ``answer`` returns does
    not count: let it bring the result to the CPU.

    Args:
        answer: what is timed.
    """
    for _ in range(WARM_UP):
        answer()
    seconds: list[float] = []
    while len(seconds) < LEAST_REPEATS or (
        len(seconds) < MOST_REPEATS and sum(seconds) < SECONDS_ENOUGH
    ):
        started = time.perf_counter()
        answer()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
