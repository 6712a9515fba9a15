"""What a network costs to use: parameters, operations, and how long one image takes here."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 3
"""Answers that are not timed: the first ones allocate, and choose their kernels."""
LEAST_REPEATS = 10
MOST_REPEATS = 50
SECONDS_ENOUGH = 3.0
"""For each answer; then timing ends, from ``LEAST_REPEATS`` on."""


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


def median_seconds(answers: Sequence[Callable[[], object]]) -> list[float]:
    """Time several answers by turns: the median of 10 to 50 of each, after 3 that do not count.

    By turns, because other work on the machine comes and goes, and shall not hit one alone.
    Torch's threads stay as they are. What is still running on a GPU when an answer returns does
    not count: let it bring the result to the CPU.

    Args:
        answers: what is timed.
    """
    seconds: list[list[float]] = [[] for _ in answers]
    begun = time.perf_counter()
    for turn in range(WARM_UP + MOST_REPEATS):
        for answer, own in zip(answers, seconds, strict=True):
            started = time.perf_counter()
            answer()
            if turn >= WARM_UP:
                own.append(time.perf_counter() - started)
        spent = time.perf_counter() - begun
        if turn >= WARM_UP + LEAST_REPEATS - 1 and spent > SECONDS_ENOUGH * len(answers):
            break
    return [statistics.median(own) for own in seconds]
