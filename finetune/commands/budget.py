"""``trainer.max_time_minutes``: as many epochs as there is time for."""

import time
from typing import cast

import torch
from torch import Tensor

from finetune.commands.rates import RUNGS
from finetune.commands.recipe import needs_steps, starts_from_probe
from finetune.commands.setup import Setup
from finetune.config import settled
from finetune.training.hardware import Hardware
from finetune.training.module import FineTuning
from finetune.training.recipe import Choice, choose_warmup, fit_to_time

SHARE_FOR_STEPS = 0.8
"""Of the time that is left; the rest is for the probe, the figures, the pictures and the export."""
STEPS_TIMED = 2
FORWARD_SHARE = 0.4
"""What an image costs in validation, compared with training: no backward pass, no gradients."""


def keep_to_time(setup: Setup, deadline: float) -> Setup:
    """Plan fewer epochs where there is no time for those that the recipe chose.

    What was typed stands; the training then stops in time wherever it is. Several processes are
    not timed, since one of them alone says little.

    Args:
        setup: of the training; its weights are as before afterwards.
        deadline: by ``time.monotonic()``.
    """
    config, data = setup.config, setup.data
    is_chosen = "trainer.epochs" in setup.choices
    if not is_chosen or not needs_steps(config) or setup.hardware.world_size > 1:
        return setup
    batch_size = settled(config.trainer.batch_size)
    size = setup.preprocess.image_size_px
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    image_seconds = time_step(setup.module, images, setup.hardware) / batch_size
    epoch_seconds = image_seconds * (len(data.train) + FORWARD_SHARE * len(data.val))
    if config.recipe == "search":  # whose trials take time as well
        epoch_seconds *= 1 + sum(count * share for count, share in RUNGS)
    choice = fit_to_time(
        settled(config.trainer.epochs),
        epoch_seconds=epoch_seconds,
        seconds=max(0.0, end_of_steps(deadline) - time.monotonic()),
    )
    epochs = max(1, cast(int, choice.value))
    changed = {"trainer.epochs": Choice(epochs, choice.reason)}
    if choice.value == 0 and starts_from_probe(config):
        # The probe takes seconds, and is a result of its own.
        changed["freeze.policy"] = Choice("backbone", choice.reason)
    if "scheduler.warmup_epochs" in setup.choices:
        changed["scheduler.warmup_epochs"] = choose_warmup(epochs)
    return setup.with_choices(changed)


def end_of_steps(deadline: float) -> float:
    """Say until when steps may go on, so that what follows them also ends in time.

    Args:
        deadline: of everything, by ``time.monotonic()``.
    """
    now = time.monotonic()
    return now + SHARE_FOR_STEPS * (deadline - now)


def time_step(module: FineTuning, images: Tensor, hardware: Hardware) -> float:
    """Measure the seconds of one step; weights and statistics stay as they are.

    Args:
        module: what learns.
        images: ``[B, 3, S, S]`` in 0..255.
        hardware: what it runs on.
    """
    device = hardware.device
    before = {name: value.clone() for name, value in module.classifier.state_dict().items()}
    images = images.to(device)
    module.to(device).train()
    seconds = []
    with torch.random.fork_rng():
        for _ in range(1 + STEPS_TIMED):  # the first one also makes room
            began = time.monotonic()
            with torch.autocast(
                device.type, hardware.dtype, enabled=hardware.dtype != torch.float32
            ):
                module(images).float().square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - began)
    module.zero_grad(set_to_none=True)
    module.classifier.load_state_dict(before)
    module.cpu()
    return min(seconds[1:])
