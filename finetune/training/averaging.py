"""Averages of weights: over the steps of a training, and between two of its states.

A state is what ``Classifier.state_dict()`` gives. BatchNorm statistics belong to the weights that
they were gathered with; `reestimate_batchnorm` gathers those of an average.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

State = Mapping[str, Tensor]


class MovingAverage(Callback):
    """Keep an exponential moving average of the classifier's weights and buffers.

    After update ``n`` (from 1) the average moves by ``1 - min(decay, n / (9 + n))`` towards the
    weights, so that it does not remember where it began. It is part of each checkpoint, and is
    not used in training.

    Args:
        decay: in (0, 1).

    Source: Polyak & Juditsky 1992; the warm-up is TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        self.updates = 0
        self._seen_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Keep the average in the checkpoint."""
        weights = {name: value.detach().cpu() for name, value in self.weights.items()}
        return {"weights": weights, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the average of the epochs before."""
        self.weights = dict(state_dict["weights"])
        self.updates = int(state_dict["updates"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, unless a checkpoint brought an average."""
        now = _classifier_state(pl_module)
        begun = self.weights or {name: value.detach().clone() for name, value in now.items()}
        self.weights = {name: begun[name].to(value.device) for name, value in now.items()}
        self._seen_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Move the average, if the optimizer has moved the weights."""
        del arguments
        if trainer.global_step == self._seen_step:  # gradients are being gathered
            return
        self._seen_step = trainer.global_step
        self.updates += 1
        share = 1 - min(self.decay, self.updates / (9 + self.updates))
        now = _classifier_state(pl_module)
        moving = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.weights[name] for name in moving], [now[name] for name in moving], share
        )
        for name in now.keys() - set(moving):  # counters
            self.weights[name].copy_(now[name])


def average_states(first: State, second: State, *, share: float = 0.5) -> dict[str, Tensor]:
    """Average two states of one network.

    Args:
        first: weights and buffers by name.
        second: the same names and shapes.
        share: of ``second``, in [0, 1].

    Returns:
        ``(1 - share) * first + share * second``; whole numbers (counters) are those of ``second``.

    Source: Wortsman et al. 2022 (WiSE-FT), equation 1.
    """
    return {
        name: torch.lerp(first[name].float(), value.float(), share).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for name, value in second.items()
    }


@torch.no_grad()
def reestimate_batchnorm(
    network: nn.Module, norms: Sequence[nn.Module], batches: Iterable[Tensor]
) -> None:
    """Gather the statistics of some BatchNorm layers anew, as the plain mean over batches.

    Everything else stays in eval mode. Without a layer, or without a batch, nothing changes.

    Args:
        network: changed in place; its modes are kept.
        norms: BatchNorm layers of ``network``; those without statistics are left alone.
        batches: inputs of ``network``, each of at least two images.

    Source: Izmailov et al. 2018 (SWA), section 3.2.
    """
    tracked = [norm for norm in norms if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    modes = {module: module.training for module in network.modules()}
    momenta = {norm: norm.momentum for norm in tracked}
    network.eval()
    is_first = True
    try:
        for images in batches if tracked else ():
            if is_first:
                for norm in tracked:
                    norm.reset_running_stats()
                    norm.momentum = None  # torch's word for the plain mean
                    norm.training = True
                is_first = False
            network(images)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _classifier_state(module: LightningModule) -> dict[str, Tensor]:
    classifier: nn.Module = module.classifier  # type: ignore[assignment]
    return dict(classifier.state_dict())
