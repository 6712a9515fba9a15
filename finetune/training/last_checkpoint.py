"""``last.ckpt``: where a training goes on, exactly as if it had not stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from finetune.training.module import FineTuning
from finetune.training.stop_request import StopRequest


class LastCheckpoint(Checkpoint):
    """Save after each epoch, now and then within one, and before the training stops.

    A safe point is after an optimizer step; before a validation; within one where there is one
    process, since nothing learns there; and after an epoch. Give it after the callbacks whose
    state belongs into the file.

    Args:
        path: of the checkpoint.

    Attributes:
        is_over: whether the training has come to its end, by early stopping or by the clock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_over = False
        self._seen_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Keep in the checkpoint whether anything is left to train."""
        return {"is_over": self.is_over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what the checkpoint says."""
        self.is_over = bool(state_dict["is_over"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, and hear the signals oneself."""
        self._seen_step = trainer.global_step
        _request(pl_module).listen_again()
        # Lightning 2.6 makes each process wait for the others' SIGTERM in every step, and lets
        # its signal handler send to them; what all want is in `FineTuning.training_step`.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Save if that is due; the last step of an epoch waits for what follows it.

        Raises:
            Stopped: all have agreed to stop.
        """
        del arguments
        loop = trainer.fit_loop.epoch_loop
        has_stepped = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        is_last = loop.batch_progress.current.ready == trainer.num_training_batches
        if not has_stepped or is_last or trainer.should_stop:
            return
        request = _request(pl_module)
        if request.agrees_to_stop or request.agrees_to_save:
            self._save(trainer, request)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where all have agreed to stop.

        Raises:
            Stopped: they have.
        """
        request = _request(pl_module)
        if request.agrees_to_stop:
            with _before_validation(trainer):
                self._save(trainer, request)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Do the same within a validation, where no other process has to agree.

        Raises:
            Stopped: a signal has come.
        """
        del arguments
        request = _request(pl_module)
        if trainer.world_size == 1 and request.wants_stop:
            request.agree(to_stop=True, to_save=False)
            self.on_validation_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save.

        Raises:
            Stopped: all have agreed to stop.
        """
        self.is_over = trainer.should_stop
        request = _request(pl_module)
        if trainer.world_size == 1 and request.wants_stop:  # several agree in the next step
            request.agree(to_stop=True, to_save=False)
        self._save(trainer, request)

    def _save(self, trainer: Trainer, request: StopRequest) -> None:
        trainer.save_checkpoint(self.path)
        request.saved()
        if request.agrees_to_stop:
            request.stop()


def _request(module: LightningModule) -> StopRequest:
    return cast(FineTuning, module).request


@contextmanager
def _before_validation(trainer: Trainer) -> Iterator[None]:
    """Let a checkpoint say that the validation has begun, and none of it is done.

    So that Lightning makes up for it; by itself it would take an epoch whose last step is done
    for a whole one.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    before = progress.state_dict()
    none_done = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    none = dict.fromkeys(none_done, 0)
    progress.load_state_dict({**before, "total": none_done, "current": none})
    try:
        yield
    finally:
        progress.load_state_dict(before)
