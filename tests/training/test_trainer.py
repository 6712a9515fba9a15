import csv
import shutil

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

from finetune.errors import DataError, TrainingError
from finetune.training.checkpoints import load_checkpoint
from finetune.training.hardware import Hardware
from finetune.training.trainer import fit


class At(Callback):
    """Do something before one batch."""

    def __init__(self, epoch, batch, action):
        self.at = (epoch, batch)
        self.action = action

    def on_train_batch_start(self, trainer, _module, _batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            self.action()


def raising(error):
    def action():
        raise error

    return action


class Watch(Callback):
    """Keep the weights of each epoch, and what the checkpoints held when the next one began."""

    def __init__(self):
        self.weights = []
        self.last_epochs = []

    def on_train_epoch_start(self, trainer, _):
        last = trainer.checkpoint_callbacks[-1].path
        self.last_epochs.append(load_checkpoint(last)["epoch"] if last.exists() else None)

    def on_train_epoch_end(self, _, pl_module):
        self.weights.append(weights_of(pl_module))


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def is_same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def script(module, accuracies, losses=None):
    """Let validation report these figures, whatever the weights."""

    def report():
        module.log("val_accuracy", torch.tensor(accuracies[module.current_epoch]))
        if losses is not None:
            module.log("val_loss", torch.tensor(losses[module.current_epoch]))

    module.on_validation_epoch_end = report
    return module


def table_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("policy", "workers", "workers_after"),
    [("none", 0, 0), ("gradual", 2, 2), ("backbone", 0, 2)],
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    make_module, make_data, make_trainer, tmp_path, policy, workers, workers_after
):
    def train(folder, *callbacks, workers=workers, resume_from=None):
        # Other weights and draws to begin with: all that counts must come from the checkpoint.
        module = make_module(policy, dropout=0.5, seed=0 if resume_from is None else 5)
        trainer = make_trainer(*callbacks, folder=folder, epochs=3, gradual=policy == "gradual")
        fit(trainer, module, make_data(workers=workers), resume_from=resume_from)
        return weights_of(module)

    expected = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", At(2, 1, raising(KeyboardInterrupt())))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert load_checkpoint(last)["epoch"] == 1
    assert len(table_of(tmp_path / "cut")) == 2
    resumed = train("cut", workers=workers_after, resume_from=last)
    assert is_same(expected, resumed)
    assert table_of(tmp_path / "cut") == table_of(tmp_path / "whole")
    assert [row["epoch"] for row in table_of(tmp_path / "cut")] == ["1", "2", "3"]
    for name in ("best", "last"):
        whole, cut = (
            load_checkpoint(tmp_path / run / "checkpoints" / f"{name}.ckpt")
            for run in ("whole", "cut")
        )
        assert whole["epoch"] == cut["epoch"]
        assert is_same(whole["state_dict"], cut["state_dict"])


@pytest.mark.parametrize(
    ("accuracies", "losses", "mode", "best"),
    [
        ([0.5, 0.9, 0.9, 0.3], None, "max", 1),
        ([0.9, 0.5, 0.4, 0.3], None, "max", 0),
        ([0.9, 0.5, 0.6, 0.3], None, "min", 3),
        # Of equal ones, that with the smallest loss.
        ([0.5, 0.9, 0.9, 0.9], [0.1, 0.6, 0.4, 0.5], "max", 2),
        ([0.5, 0.3, 0.3, 0.3], [0.1, 0.6, 0.6, 0.5], "min", 3),
    ],
)
def test_best_is_the_best_epoch_and_last_is_always_the_last(
    make_module, make_data, make_trainer, tmp_path, accuracies, losses, mode, best
):
    watch = Watch()
    trainer = make_trainer(watch, epochs=4, mode=mode)
    module = script(make_module(), accuracies, losses)
    fit(trainer, module, make_data(), resume_from=None)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert watch.last_epochs == [None, 0, 1, 2]
    for name, epoch in (("best", best), ("last", 3)):
        content = load_checkpoint(folder / f"{name}.ckpt")
        assert content["epoch"] == epoch
        assert is_same(content["state_dict"], watch.weights[epoch])
    assert trainer.callbacks[0].best_epoch == best + 1


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_resumed_run_remembers_what_was_best(
    make_module, make_data, make_trainer, tmp_path, is_moved
):
    # The last one is as accurate as the first, but its loss is larger.
    accuracies, losses = [0.9, 0.5, 0.4, 0.9], [0.3, 0.1, 0.1, 0.4]
    trainer = make_trainer(At(2, 0, raising(ZeroDivisionError())), folder="here", epochs=4)
    with pytest.raises(ZeroDivisionError):
        fit(trainer, script(make_module(), accuracies, losses), make_data(), resume_from=None)
    folder = "there" if is_moved else "here"
    if is_moved:
        shutil.move(tmp_path / "here", tmp_path / "there")
    checkpoints = tmp_path / folder / "checkpoints"
    trainer = make_trainer(folder=folder, epochs=4)
    module = script(make_module(), accuracies, losses)
    fit(trainer, module, make_data(), resume_from=checkpoints / "last.ckpt")
    assert load_checkpoint(checkpoints / "best.ckpt")["epoch"] == 0
    assert load_checkpoint(checkpoints / "last.ckpt")["epoch"] == 3
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (tmp_path / "here").exists() is not is_moved


def test_training_stops_early_when_nothing_gets_better(
    make_module, make_data, make_trainer, tmp_path
):
    trainer = make_trainer(epochs=6, patience=2)
    module = script(make_module(), [0.5, 0.7, 0.7, 0.6, 0.9, 0.9])
    fit(trainer, module, make_data(), resume_from=None)
    assert len(table_of(tmp_path / "run")) == 4
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"] == 3


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 4), (3, 2)])
def test_accumulated_batches_make_one_step(
    make_module, make_data, make_trainer, tmp_path, accumulate, steps
):
    trainer = make_trainer(epochs=2, accumulate=accumulate)
    fit(trainer, make_module(lr=0.05), make_data(), resume_from=None)
    assert trainer.global_step == steps
    # The schedule counts the same steps, so it has come to its end.
    assert float(table_of(tmp_path / "run")[-1]["lr"]) == pytest.approx(0.005)


def test_an_image_that_goes_away_is_named(make_module, make_data, make_trainer, tmp_path):
    for workers in (0, 2):
        data = make_data(workers=workers)
        data.train.paths[5] = "lying/gone.png"
        with pytest.raises(DataError) as caught:
            fit(make_trainer(epochs=1), make_module(), data, resume_from=None)
        assert str(caught.value).startswith(str(data.train.root / "lying" / "gone.png"))
        assert "cannot be read" in str(caught.value)
        assert "Traceback" not in str(caught.value)


def test_too_little_memory_is_explained(make_module, make_data, make_trainer):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    with pytest.raises(TrainingError, match=r"memory is too small.*trainer\.batch_size"):
        fit(
            make_trainer(At(0, 1, raising(error))),
            make_module(),
            make_data(),
            resume_from=None,
        )


def test_any_other_error_is_left_alone(make_module, make_data, make_trainer):
    with pytest.raises(ZeroDivisionError):
        fit(
            make_trainer(At(0, 1, raising(ZeroDivisionError()))),
            make_module(),
            make_data(),
            resume_from=None,
        )


@pytest.mark.parametrize("gradual", [False, True])
def test_ddp_looks_for_unused_parameters_only_where_stages_open_later(make_trainer, gradual):
    hardware = Hardware("cpu", 2, 1, "ddp", "32-true", {})
    strategy = make_trainer(gradual=gradual, hardware=hardware).strategy
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs["find_unused_parameters"] is gradual
    assert strategy.process_group_backend == "gloo"
