"""What pretrained weights were worth: the same training once more, from random ones."""

from dataclasses import dataclass

from lightning.pytorch import seed_everything

from finetune.commands.components import (
    build_classifier,
    build_module,
    build_trial,
    monitor_key,
    monitor_mode,
)
from finetune.commands.recipe import fill_in, is_pretrained
from finetune.commands.setup import Setup
from finetune.config import TrainConfig, settled
from finetune.training.candidates import best_of
from finetune.training.recipe import random_start
from finetune.training.trainer import fit


@dataclass(frozen=True)
class Gain:
    """Two trainings of as many epochs, by what is monitored on validation.

    Attributes:
        monitor: what is compared, such as ``val_accuracy``.
        pretrained: of the weights that are kept.
        random: of the best epoch from random weights.
        epochs: of each, at most.
    """

    monitor: str
    pretrained: float
    random: float
    epochs: int

    def __str__(self) -> str:
        """Say it in a line."""
        name = self.monitor.removeprefix("val_").replace("_", " ")
        kept, other = (
            f"{value:.3f}" if name == "loss" else f"{100 * value:.1f} %"
            for value in (self.pretrained, self.random)
        )
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return (
            f"What the pretrained weights are worth: val {name} {kept} with them, {other} from "
            f"random ones, {epochs} each."
        )


def measure_gain(setup: Setup, pretrained: float) -> Gain | None:
    """Train once more from random weights: same network, images, batches, epochs and seed.

    All of it learns, at the rates that the recipe takes for random weights.

    Args:
        setup: of the training that is over; left as it is.
        pretrained: its monitored value.

    Returns:
        None where nobody asked, nothing was pretrained, or there is no time or no single device
        for it; the last two are said.
    """
    config, console = setup.config, setup.console
    if not (config.evidence.gain and is_pretrained(config)):
        return None
    if config.trainer.max_time_minutes is not None or setup.hardware.world_size > 1:
        console.print(
            "evidence.gain: not measured with a limit of time, or on several devices.",
            highlight=False,
        )
        return None
    epochs = settled(config.trainer.epochs)
    console.print(f"\nFrom random weights, for comparison: {epochs} epochs …", highlight=False)
    config = _from_random(config)
    seed_everything(config.seed, verbose=False)
    classifier = build_classifier(
        config, num_classes=len(setup.folder.class_names), load_weights=False
    )
    module = build_module(config, classifier, setup.preprocess, setup.folder)
    trainer, table = build_trial(config, setup.hardware, setup.run)
    fit(trainer, module, setup.data, resume_from=None)
    rows = {str(row["epoch"]): row for row in table.rows}
    monitor = monitor_key(config)
    best = rows[best_of(rows, monitor=monitor, mode=monitor_mode(config))]
    return Gain(monitor, pretrained, best[monitor], epochs)


def _from_random(config: TrainConfig) -> TrainConfig:
    model = config.model.model_copy(update={"pretrained": False, "weights": None})
    values = {key: choice.value for key, choice in random_start().items()}
    return fill_in(config.model_copy(update={"model": model}), values)
