"""A training that is stopped anywhere goes on as if it had not been, to the last bit.

With all that draws or remembers: augmentation, dropout, BatchNorm, mixup and cutmix, AdamW, a
schedule, a moving average.
"""

import csv
import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from finetune.errors import Stopped
from finetune.training.averaging import MovingAverage
from finetune.training.callbacks import EarlyStop
from finetune.training.checkpoints import load_checkpoint
from finetune.training.mixing import create_mix
from finetune.training.stop_request import SIGNALS
from finetune.training.trainer import fit

EPOCHS = 3
BATCHES = 10  # of an epoch


class Watcher(Callback):
    """Collect the losses; send a signal to this process in a step, or in validation."""

    def __init__(self, step=None, *, validation=None, number=signal.SIGTERM):
        self.step, self.validation, self.number = step, validation, number
        self.losses = []
        self.validated = 0

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            self.step = None
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, _trainer, _module, outputs, *_):
        self.losses.append(float(outputs["loss"]))

    def on_validation_batch_start(self, *_):
        if self.validated == self.validation:
            os.kill(os.getpid(), self.number)
        self.validated += 1


def tiny_backbone(seed):
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    backbone.num_features = 16
    return backbone


@pytest.fixture
def train(make_module, make_data, make_trainer, tmp_path):
    """Train in a folder, from the start or from its last checkpoint."""

    def run(
        folder, *callbacks, workers=0, accumulate=1, goes_on=False, policy="none", minutes=None
    ):
        # Other weights to begin with: all that counts must come from the checkpoint.
        module = make_module(
            policy,
            backbone=tiny_backbone(int(goes_on)),
            dropout=0.3,
            mix=create_mix(mixup_alpha=0.5, cutmix_alpha=0.5, num_classes=2),
            seed=int(goes_on),
            optimizer="adamw",
        )
        module.request.save_every_minutes = minutes
        trainer = make_trainer(
            *callbacks,
            MovingAverage(0.7),
            folder=folder,
            epochs=EPOCHS,
            accumulate=accumulate,
            gradual=policy == "gradual",
        )
        last = tmp_path / folder / "checkpoints" / "last.ckpt"
        data = make_data(workers=workers, per_class=20)
        fit(trainer, module, data, resume_from=last if goes_on else None)
        return load_checkpoint(last)

    return run


def is_equal(one, two):
    """Compare plain values and tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(is_equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(is_equal, one, two))
    return one == two


def table_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_end(one, two):
    """Compare what two runs leave: weights, optimizer, schedule, averages, best, table."""
    for name in ("best", "last"):
        left, right = (load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for run in (one, two))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
            assert is_equal(left[key], right[key]), (name, key)
        for key in ("EpochTable", "MovingAverage", "LastCheckpoint"):
            assert is_equal(left["callbacks"][key], right["callbacks"][key]), (name, key)
    assert table_of(one) == table_of(two)
    assert [row["epoch"] for row in table_of(one)] == [str(epoch + 1) for epoch in range(EPOCHS)]
    assert all(row["train_loss"] for row in table_of(one))


def test_stopped_after_each_of_30_steps(train, tmp_path):
    whole = Watcher()
    train("whole", whole)
    steps = range(EPOCHS * BATCHES)
    for step in steps:
        first, second = Watcher(step), Watcher()
        with pytest.raises(Stopped) as caught:
            train("cut", first)
        assert caught.value.exit_status == 128 + signal.SIGTERM
        assert len(first.losses) == step + 1
        train("cut", second, goes_on=True)
        assert first.losses + second.losses == whole.losses
        assert_same_end(tmp_path / "whole", tmp_path / "cut")
    print(f"{len(steps)} of {len(steps)} stops in 30 trainings exact, without workers")


@pytest.mark.parametrize("workers", [(2, 2), (2, 0)])
def test_stopped_30_times_in_one_training_with_workers(train, tmp_path, workers):
    """Of the second pair, their number changes each time."""
    whole, losses = Watcher(), []
    train("whole", whole)
    steps = range(EPOCHS * BATCHES)
    for step in steps:
        part = Watcher(step)
        with pytest.raises(Stopped):
            train("cut", part, workers=workers[step % 2], goes_on=step > 0)
        assert len(part.losses) == 1
        losses += part.losses
    train("cut", goes_on=True)
    assert losses == whole.losses
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    print(f"{len(steps)} of {len(steps)} stops in one training exact, with {workers} workers")


@pytest.mark.parametrize("accumulate", [2, 4])
def test_stopped_between_accumulated_batches(train, tmp_path, accumulate):
    """The stop waits for the optimizer's step: what is gathered is in no checkpoint."""
    whole = Watcher()
    train("whole", whole, accumulate=accumulate)
    per_epoch = -(-BATCHES // accumulate)
    for step in range(2 * per_epoch):
        first, second = Watcher(step), Watcher()
        with pytest.raises(Stopped):
            train("cut", first, accumulate=accumulate)
        epochs, steps = divmod(step + 1, per_epoch)
        assert len(first.losses) == epochs * BATCHES + steps * accumulate
        train("cut", second, accumulate=accumulate, goes_on=True)
        assert first.losses + second.losses == whole.losses
        assert_same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_stopped_in_a_validation_which_is_made_up_for(train, tmp_path, batch):
    """Of two batches each; the second epoch's begins with the third."""
    whole = Watcher()
    train("whole", whole)
    first, second = Watcher(validation=batch), Watcher()
    with pytest.raises(Stopped):
        train("cut", first)
    epochs = batch // 2 + 1
    assert (len(first.losses), first.validated) == (epochs * BATCHES, batch + 1)
    train("cut", second, goes_on=True)
    assert second.validated == whole.validated - 2 * (epochs - 1)
    assert first.losses + second.losses == whole.losses
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_stopped_twice_in_an_epoch_of_stages_that_open(train, tmp_path):
    whole, parts = Watcher(), [Watcher(12), Watcher(15), Watcher()]
    train("whole", whole, policy="gradual")
    with pytest.raises(Stopped):
        train("cut", parts[0], policy="gradual")
    with pytest.raises(Stopped):
        train("cut", parts[1], policy="gradual", goes_on=True)
    train("cut", parts[2], policy="gradual", goes_on=True)
    assert [len(part.losses) for part in parts] == [13, 3, 14]
    assert [loss for part in parts for loss in part.losses] == whole.losses
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_has_its_status_and_leaves_the_handlers_alone(train, number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped) as caught:
        train("cut", Watcher(4, number=number))
    assert caught.value.exit_status == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before


class KilledAt(Callback):
    """Stop without a word, as a kill does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise ZeroDivisionError


def test_a_save_within_an_epoch_outlives_a_kill(train, tmp_path):
    whole, rest = Watcher(), Watcher()
    train("whole", whole)
    with pytest.raises(ZeroDivisionError):
        train("cut", KilledAt(17), minutes=0)
    last = load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 17
    train("cut", rest, goes_on=True)
    assert rest.losses == whole.losses[17:]
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_without_it_the_epoch_begins_again_and_ends_alike(train, tmp_path):
    whole, rest = Watcher(), Watcher()
    train("whole", whole)
    with pytest.raises(ZeroDivisionError):
        train("cut", KilledAt(17))
    train("cut", rest, goes_on=True)
    assert rest.losses == whole.losses[10:]
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_training_that_stopped_early_is_over(make_module, make_data, make_trainer, tmp_path):
    trainer = make_trainer(epochs=6, patience=1)
    assert any(isinstance(callback, EarlyStop) for callback in trainer.callbacks)
    module = make_module(lr=1e-9)
    fit(trainer, module, make_data(), resume_from=None)
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["epoch"] < 5
    assert last["callbacks"]["LastCheckpoint"] == {"is_over": True}
