"""Which weights a training ends with: the best on validation of all that it has come by.

The probe is the start of most trainings, so nothing is chosen that is worse than it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.commands.components import monitor_key, monitor_mode
from finetune.commands.setup import Setup
from finetune.evaluation.epoch import training_metrics
from finetune.run import RunDirectory
from finetune.training.averaging import MovingAverage, average_states, reestimate_batchnorm
from finetune.training.callbacks import EpochTable
from finetune.training.candidates import best_of, score_states
from finetune.training.checkpoints import load_checkpoint
from finetune.training.module import FineTuning

PROBE = "probe"
FINE_TUNED = "fine-tuned"
MOVING_AVERAGE = "moving average"
BETWEEN = "average of probe and fine-tuned"
BATCHNORM_IMAGES = 2_000
"""So many training images are enough to gather the statistics of an average anew."""

_PREFIX = "classifier."
State = dict[str, Tensor]


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what it was chosen from.

    Attributes:
        name: of the best candidate.
        state: its weights and buffers.
        values: ``val_<metric>`` and ``val_loss`` of each candidate, in the training's precision.
    """

    name: str
    state: State
    values: Mapping[str, Mapping[str, float]]


def probe_state(directory: RunDirectory) -> State | None:
    """Read the weights that the training started from; None where it had no probe."""
    if not directory.probe_checkpoint.is_file():
        return None
    return _classifier_part(load_checkpoint(directory.probe_checkpoint)["state_dict"])


def choose_weights(setup: Setup) -> Selection:
    """Gather the candidates, score those that have no score yet, say and take the best."""
    config, module = setup.config, setup.module
    states = _candidates(setup.run)
    values = _known_values(setup.epochs)
    unknown = [name for name in states if name not in values]
    for name in unknown:
        states[name] = _with_own_statistics(states[name], setup)
    if unknown:
        scored = score_states(
            module.classifier,
            [states[name] for name in unknown],
            setup.data.val_dataloader(),
            normalise=module.normalise,
            metrics=training_metrics(
                len(module.class_names), task=config.task, names=config.dataset.metrics
            ),
            task=config.task,
            device=setup.hardware.device,
            dtype=setup.hardware.dtype,
        )
        values |= dict(zip(unknown, scored, strict=True))
    shown = {name: values[name] for name in states}
    monitor = monitor_key(config)
    best = best_of(shown, monitor=monitor, mode=monitor_mode(config))
    if len(shown) > 1:
        label = monitor.removeprefix("val_").replace("_", " ")
        parts = ", ".join(f"{name} {value[monitor]:.4f}" for name, value in shown.items())
        setup.console.print(f"\nBest by {label} on val: {best} (of {parts}).", soft_wrap=True)
    return Selection(best, states[best], shown)


def _candidates(directory: RunDirectory) -> dict[str, State]:
    """Read every set of weights that the training has left, by name."""
    states: dict[str, State] = {}
    probe = probe_state(directory)
    if probe is not None:
        states[PROBE] = probe
    if not directory.best_checkpoint.is_file():  # the probe was all
        return states
    best = _classifier_part(load_checkpoint(directory.best_checkpoint)["state_dict"])
    states[FINE_TUNED] = best
    callbacks = load_checkpoint(directory.last_checkpoint).get("callbacks", {})
    average = callbacks.get(MovingAverage.__qualname__)
    if average is not None:
        states[MOVING_AVERAGE] = average["weights"]
    if probe is not None:
        states[BETWEEN] = average_states(probe, best)
    return states


def _known_values(epochs: EpochTable) -> dict[str, dict[str, float]]:
    by_epoch = {int(row["epoch"]): row for row in epochs.rows}
    trained = [row for epoch, row in by_epoch.items() if epoch > 0]
    values = {}
    if 0 in by_epoch:
        values[PROBE] = _scores(by_epoch[0])
    if trained:
        rows = {str(row["epoch"]): row for row in trained}
        best = best_of(rows, monitor=epochs.monitor, mode=epochs.mode)
        values[FINE_TUNED] = _scores(rows[best])
    return values


def _scores(row: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("val_")}


def _with_own_statistics(state: State, setup: Setup) -> State:
    """Gather the BatchNorm statistics of averaged weights anew, where training moved them."""
    norms = _moving_norms(setup.module)
    if not norms:
        return state
    classifier, hardware = setup.classifier, setup.hardware
    classifier.load_state_dict(state)
    classifier.to(hardware.device)
    dtype = hardware.dtype
    with torch.autocast(hardware.device.type, dtype, enabled=dtype != torch.float32):
        reestimate_batchnorm(classifier, norms, _resized_batches(setup))
    return {name: value.detach().cpu().clone() for name, value in classifier.state_dict().items()}


def _moving_norms(module: FineTuning) -> list[nn.Module]:
    if module.freezing.batchnorm == "frozen":
        return []
    modules = dict(module.classifier.backbone.named_modules())
    open_stages = module.stages[module.num_frozen :]  # gradual may not have opened all
    members = [modules[name] for stage in open_stages for name in stage.module_names]
    return [member for member in members if isinstance(member, _BatchNorm)]


def _resized_batches(setup: Setup) -> Iterator[Tensor]:
    num_batches = max(1, BATCHNORM_IMAGES // setup.data.batch_size)
    for images, _ in islice(setup.data.resized_train_dataloader(), num_batches):
        if len(images) > 1:
            pixels = setup.module.normalise(images.to(setup.hardware.device))
            yield pixels.contiguous(memory_format=torch.channels_last)


def _classifier_part(state: Mapping[str, Tensor]) -> State:
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
