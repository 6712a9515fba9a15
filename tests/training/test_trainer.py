import csv
import signal

import pytest
import torch
from lightning.pytorch import Callback

from finetune.training.trainer import fit


class Interrupt(Callback):
    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise KeyboardInterrupt


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("policy", ["none", "gradual", "backbone"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    make_module, make_data, make_trainer, tmp_path, policy, workers, dropout
):
    def train(folder, *callbacks, seed, resume_from=None):
        module = make_module(policy, dropout=dropout, seed=seed)
        trainer = make_trainer(*callbacks, folder=folder, epochs=3, gradual=policy == "gradual")
        torch.manual_seed(7)
        done = fit(trainer, module, make_data(workers=workers), resume_from=resume_from)
        return done, weights_of(module)

    _, expected = train("whole", seed=0)
    done, _ = train("cut", Interrupt(2, 1), seed=0)
    assert not done
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    done, resumed = train("cut", seed=5, resume_from=last)
    assert done
    assert same(expected, resumed)
