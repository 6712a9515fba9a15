"""``optimizer.lr=find`` and ``recipe=search``: a learning rate by trying, before the training."""

from collections.abc import Mapping, Sequence

import torch

from finetune.commands.components import (
    build_trial,
    learning_rates,
    monitor_key,
    monitor_mode,
)
from finetune.commands.setup import Setup
from finetune.config import TrainConfig, settled
from finetune.data.datamodule import ImageDataModule
from finetune.evaluation.finder_plot import plot_rate_curve
from finetune.run import write_json
from finetune.training.candidates import best_of
from finetune.training.lr_finder import find_rate, rate_step
from finetune.training.optim import create_optimizer, parameter_groups
from finetune.training.recipe import Choice
from finetune.training.trainer import fit

SEARCHED_FACTORS = (1 / 3, 1.0, 3.0)
RUNGS = ((3, 0.25), (2, 0.5))
"""How many rates are tried in turn, and for which share of the epochs: the better half goes on."""
FINDER_STEPS = 60


def find_choice(setup: Setup, steps: ImageDataModule) -> Choice:
    """Let the rate rise step by step, draw the loss, and take what the curve suggests.

    Args:
        setup: of the training; its rate stands where the curve suggests none. The weights are as
            before afterwards.
        steps: what the steps are given.
    """
    config, module, hardware = setup.config, setup.module, setup.hardware
    parts = module.parts()
    lr = settled(config.optimizer.lr)
    groups = parameter_groups(
        parts, learning_rates(config, parts), weight_decay=settled(config.optimizer.weight_decay)
    )
    module.to(hardware.device)
    optimizer = create_optimizer(
        config.optimizer.name, groups, lr=lr, momentum=config.optimizer.momentum
    )
    dtype = None if hardware.dtype == torch.float32 else hardware.dtype
    with rate_step(
        module,
        optimizer,
        steps.train_dataloader(),
        dtype=dtype,
        gradient_clip=config.trainer.gradient_clip,
    ) as step:
        curve = find_rate(step, lowest=lr / 1000, highest=lr * 1000, num_steps=FINDER_STEPS)
    plot_rate_curve(
        curve.rates,
        curve.losses,
        curve.smoothed,
        setup.run.rate_curve,
        suggestion=curve.suggestion,
    )
    if curve.suggestion is None:
        choice = Choice(lr, f"the recipe's, as the range test suggests none: {curve.reason}")
    else:
        choice = Choice(float(f"{curve.suggestion:.2g}"), f"found: {curve.reason}")
    setup.console.print(f"Learning rate {choice.value:g}: {choice.reason}.", soft_wrap=True)
    return choice


def search_choice(setup: Setup, steps: ImageDataModule) -> Choice:
    """Try three rates for a quarter of the epochs, the better two for half, and take the best.

    Each trial is a short training of its own, from the same start and with the whole schedule.

    Args:
        setup: of the training; its rate is the middle one. The weights are as before afterwards.
        steps: what the steps are given.

    Source: Jamieson & Talwalkar 2016 (successive halving).
    """
    config, classifier = setup.config, setup.classifier
    start = {k: v.detach().cpu().clone() for k, v in classifier.state_dict().items()}
    base = settled(config.optimizer.lr)
    rates = [float(f"{base * factor:.2g}") for factor in SEARCHED_FACTORS]
    trials: list[dict[str, float]] = []
    for count, share in RUNGS:
        epochs = max(1, round(share * settled(config.trainer.epochs)))
        scores: dict[str, Mapping[str, float]] = {}
        for rate in rates[:count]:
            classifier.load_state_dict(start)
            trial = setup.with_choices(_shortened(config, rate, epochs))
            rows = _train(trial, steps)
            ranked = {str(index): row for index, row in enumerate(rows)}
            scores[str(rate)] = ranked[
                best_of(ranked, monitor=monitor_key(config), mode=monitor_mode(config))
            ]
            # The row has an "lr" as well: that of the last step, when the schedule has ended.
            trials.append({**scores[str(rate)], "lr": rate, "epochs": float(epochs)})
            value = scores[str(rate)][monitor_key(config)]
            setup.console.print(
                f"Search: lr {rate:g}, {epochs} epochs: {value:.4f}", highlight=False
            )
        rates = _ranked(scores, config)
    classifier.load_state_dict(start)
    write_json(setup.run.search, {"trials": trials, "chosen": rates[0]})
    tried = ", ".join(f"{base * factor:.2g}" for factor in SEARCHED_FACTORS)
    return Choice(rates[0], f"the best of {tried} in short trainings")


def _ranked(scores: Mapping[str, Mapping[str, float]], config: TrainConfig) -> list[float]:
    """Order the rates, the best first."""
    rest, ranked = dict(scores), []
    while rest:
        best = best_of(rest, monitor=monitor_key(config), mode=monitor_mode(config))
        ranked.append(float(best))
        del rest[best]
    return ranked


def _shortened(config: TrainConfig, rate: float, epochs: int) -> dict[str, Choice]:
    values = {"optimizer.lr": rate, "trainer.epochs": epochs}
    warmup = getattr(config.scheduler, "warmup_epochs", None)
    if warmup is not None:
        share = epochs / settled(config.trainer.epochs)
        values["scheduler.warmup_epochs"] = share * settled(warmup)
    return {key: Choice(value, "of a trial") for key, value in values.items()}


def _train(trial: Setup, steps: ImageDataModule) -> Sequence[Mapping[str, float]]:
    """Train without a trace and return the rows of the epochs."""
    trainer, table = build_trial(trial.config, trial.hardware, trial.run)
    fit(trainer, trial.module, steps, resume_from=None)
    return table.rows
