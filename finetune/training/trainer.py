"""The Lightning Trainer of a run, and one fit with it."""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch import Tensor, nn

from finetune.errors import ConfigError, DataError
from finetune.training.checkpoints import AtomicCheckpointIO
from finetune.training.faults import explain
from finetune.training.hardware import Hardware
from finetune.training.last_checkpoint import LastCheckpoint
from finetune.training.module import FineTuning
from finetune.training.processes import join_after_restart, watched_processes


def create_trainer(
    hardware: Hardware,
    *,
    epochs: int,
    accumulate_batches: int,
    gradient_clip: float | None,
    monitor: str,
    mode: str,
    folder: Path,
    keeps_checkpoints: bool = True,
    stages_open_later: bool,
    synchronise_batchnorm: bool,
    callbacks: Sequence[Callback],
    logger: Logger | None,
) -> Trainer:
    """Make the Trainer: checkpoints ``best`` and ``last``, progress, strategy.

    Args:
        hardware: what it runs on.
        epochs: passes over the training images.
        accumulate_batches: batches to an optimizer step.
        gradient_clip: largest norm of the gradient; None for no limit.
        monitor: the logged metric that decides.
        mode: ``max`` where more of it is better, else ``min``.
        folder: of the run; ``best.ckpt`` and ``last.ckpt`` go to ``checkpoints`` in it.
        keeps_checkpoints: whether they do.
        stages_open_later: parameters may be without gradients at first (gradual unfreezing).
        synchronise_batchnorm: compute training statistics over all GPUs.
        callbacks: further callbacks.
        logger: a further logger.
    """
    # The table of epochs is a callback of ours, before the checkpoints, whose state it enters.
    all_callbacks: list[Callback] = [*callbacks]
    if keeps_checkpoints:
        all_callbacks += [
            _MovableCheckpoint(
                dirpath=folder / "checkpoints",
                filename="best",
                monitor=monitor,
                mode=mode,
                save_top_k=1,
                auto_insert_metric_name=False,
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            ),
            LastCheckpoint(folder / "checkpoints" / "last.ckpt"),
        ]
    return Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=_strategy(hardware, stages_open_later=stages_open_later),
        precision=hardware.precision,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate_batches,
        # FSDP cannot clip by norm in Lightning; the plan says so.
        gradient_clip_val=None if hardware.strategy == "fsdp" else gradient_clip,
        sync_batchnorm=synchronise_batchnorm and hardware.accelerator == "gpu",
        callbacks=all_callbacks,
        logger=logger or False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        enable_checkpointing=keeps_checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def fit(
    trainer: Trainer,
    module: FineTuning,
    data: LightningDataModule,
    *,
    resume_from: Path | None,
) -> None:
    """Train to the end, or to a signal.

    Raises:
        Stopped: a signal came; if checkpoints are kept, ``last.ckpt`` goes on from here.
        KeyboardInterrupt: somebody raised it; ``last.ckpt`` is that of before.
        TrainingError: the loss is not finite, memory ran out, a process or a disk failed.
        DataError: an image could not be read during the run.
    """
    request = module.request
    keeps_last = any(isinstance(each, LastCheckpoint) for each in trainer.checkpoint_callbacks)
    checkpoint = None if resume_from is None else str(resume_from)
    try:
        with (
            warnings.catch_warnings(),
            request.listening(),
            request.until_safe() if keeps_last else nullcontext(),
            watched_processes(trainer),
        ):
            _ignore_known_warnings()
            join_after_restart(trainer, os.environ)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    except Exception as error:
        explained = explain(error, num_processes=trainer.world_size)
        if explained is None:
            raise
        raise explained from (None if isinstance(explained, DataError) else error)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # One process goes on alone: a metric that it computes would wait for the others.
        torch.distributed.destroy_process_group()


@contextmanager
def compiled_network(network: nn.Module) -> Iterator[None]:
    """Run a network through ``torch.compile`` within the block; its state keeps its names.

    Raises:
        ConfigError: torch cannot compile on this system.
    """
    try:
        network.compile()
    except RuntimeError as error:
        raise ConfigError(f"trainer.compile: got true, but torch cannot: {error}") from None
    try:
        yield
    finally:
        cast(Any, network)._compiled_call_impl = None  # torch has no public word for it


def quiet_lightning() -> None:
    """Keep Lightning's tips and its list of devices off the terminal: the plan says it better."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _MovableCheckpoint(ModelCheckpoint):
    """Remember what was best also when the run directory has another name by now.

    Of equal values, that with the smaller loss is better: on few images, many epochs are equally
    accurate, and the first of them is hardly trained.
    """

    _loss_of_best = math.inf

    def state_dict(self) -> dict[str, Any]:
        """Give the state, with the loss of the best."""
        return {**super().state_dict(), "loss_of_best": self._loss_of_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state, with the paths of today."""
        old, new = str(state_dict["dirpath"]), str(self.dirpath)
        moved: dict[str, Any] = {
            key: value.replace(old, new) if isinstance(value, str) else value
            for key, value in state_dict.items()
        }
        best = state_dict["best_k_models"]
        moved["best_k_models"] = {path.replace(old, new): best[path] for path in best}
        self._loss_of_best = moved.pop("loss_of_best", math.inf)
        super().load_state_dict(moved)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Tell whether ``current`` is better, or equal with a smaller loss."""
        loss = float(trainer.callback_metrics.get("val_loss", math.inf))
        is_better = super().check_monitor_top_k(trainer, current)
        is_equal = current is not None and current == self.best_model_score
        if is_better or (is_equal and loss < self._loss_of_best):
            self._loss_of_best = loss
            return True
        return False


def _strategy(hardware: Hardware, *, stages_open_later: bool) -> Strategy | str:
    match hardware.strategy:
        case "ddp":
            # With stages that open later, DDP must look for parameters without gradients.
            backend = "gloo" if hardware.accelerator == "cpu" else "nccl"
            return DDPStrategy(
                find_unused_parameters=stages_open_later, process_group_backend=backend
            )
        case "fsdp":
            # As DDP does by itself: all start from the weights of the first process, which alone
            # has fitted the probe.
            return FSDPStrategy(
                use_orig_params=True, state_dict_type="full", sync_module_states=True
            )
        case _:
            return "auto"


def _ignore_known_warnings() -> None:
    """Silence what Lightning says about choices that are made on purpose here."""
    known = (
        r".*does not have many workers.*",
        r".*module\(s\) in eval mode at the start of training.*",  # frozen, on purpose
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*number of training batches .* is smaller than the logging interval.*",
        r".*`weights_only` was not set.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*You're resuming from a checkpoint that ended before the epoch ended.*",
    )
    for message in known:
        warnings.filterwarnings("ignore", message=message)
