"""Several sets of weights of one network, compared on the same images in one pass.

Shapes: ``B`` images of a batch, ``S`` pixels a side, ``C`` classes. A state is what
``Classifier.state_dict()`` gives.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torchmetrics import MetricCollection

from finetune.models.answers import Task, to_probabilities
from finetune.models.classifier import Classifier
from finetune.training.averaging import State
from finetune.training.losses import image_losses


@torch.inference_mode()
def score_states(
    classifier: Classifier,
    states: Sequence[State],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    normalise: Callable[[Tensor], Tensor],
    metrics: MetricCollection,
    task: Task,
    device: torch.device,
    dtype: torch.dtype,
) -> list[dict[str, float]]:
    """Measure each state as validation measures the weights in training.

    Args:
        classifier: the network; its own weights are not used, and not changed.
        states: complete.
        batches: images ``[B, 3, S, S]`` in 0..255 and targets; each is loaded once.
        normalise: to the network's input.
        metrics: of probabilities ``[B, C]`` and targets, by name.
        task: what the logits mean.
        device: what computes.
        dtype: float32, or bfloat16 or float16 by autocast.

    Returns:
        For each state ``val_<metric>`` and ``val_loss``.
    """
    classifier.eval()
    placed = [_placed(state, device) for state in states]
    scores = [metrics.clone(prefix="val_").to(device) for _ in states]
    losses: list[list[Tensor]] = [[] for _ in states]
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    for images, targets in batches:
        known = targets.to(device)
        pixels = normalise(images.to(device)).contiguous(memory_format=torch.channels_last)
        for state, score, loss in zip(placed, scores, losses, strict=True):
            with autocast:
                logits = functional_call(classifier, state, (pixels,)).float()
            score.update(to_probabilities(logits, task), known)
            loss.append(image_losses(logits, known, task))
    return [
        {
            "val_loss": torch.cat(loss).mean().item(),
            **{name: float(value) for name, value in score.compute().items()},
        }
        for score, loss in zip(scores, losses, strict=True)
    ]


def best_of(values: Mapping[str, Mapping[str, float]], *, monitor: str, mode: str) -> str:
    """Name the best: by the monitored value, of equals by the loss, then the first.

    Args:
        values: ``val_<metric>`` and ``val_loss`` of each candidate, by its name.
        monitor: the key that decides; what is missing or NaN is worse than anything.
        mode: ``max`` or ``min``.
    """
    sign = 1 if mode == "max" else -1

    def goodness(name: str) -> tuple[float, float]:
        value, loss = (values[name].get(key, math.nan) for key in (monitor, "val_loss"))
        return (
            -math.inf if math.isnan(value) else sign * value,
            -math.inf if math.isnan(loss) else -loss,
        )

    return max(values, key=goodness)


def _placed(state: State, device: torch.device) -> dict[str, Tensor]:
    return {
        name: value.to(device, memory_format=torch.channels_last)
        if value.ndim == 4
        else value.to(device)
        for name, value in state.items()
    }
