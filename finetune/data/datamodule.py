"""The LightningDataModule: wiring, nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from finetune.data.batches import (
    Key,
    TrainBatches,
    balanced_order,
    epoch_order,
    validation_batches,
)
from finetune.data.labelled_images import LabelledImages
from finetune.data.workers import start_worker


class ImageDataModule(LightningDataModule):
    """Training and validation loaders; the order and the augmentation do not depend on workers.

    Args:
        train: labelled images, augmented.
        val: labelled images, resized.
        collate: what makes a batch of samples; None for torch's own way.
        resized_train: the training images as validation would see them; None where nobody asks.
        batch_size: images of one step over all processes.
        workers: decoding processes of each training process.
        seed: of the order.
        is_balanced: draw each class equally often (single labels only).
    """

    def __init__(
        self,
        train: LabelledImages,
        val: LabelledImages,
        *,
        batch_size: int,
        workers: int,
        seed: int,
        is_balanced: bool = False,
        resized_train: LabelledImages | None = None,
        collate: Callable[[Sequence[tuple[Tensor, Tensor]]], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.resized_train = resized_train
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.is_balanced = is_balanced
        self.collate = collate
        self.start = (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Say which epoch comes next, and how many of its batches have been trained on."""
        if self.trainer is None:
            return {"epoch": 0, "batches": 0}
        epoch, loop = self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop
        batches = loop.batch_progress.current.ready
        is_whole = batches == self.trainer.num_training_batches
        return {"epoch": epoch + is_whole, "batches": 0 if is_whole else batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start there."""
        self.start = (int(state_dict["epoch"]), int(state_dict["batches"]))

    def teardown(self, stage: str) -> None:
        """Forget the processes of a training that has ended: who asks now gets all images."""
        del stage
        self.trainer = None

    def order(self, epoch: int) -> list[int]:
        """Give the order of one epoch over all processes."""
        if self.is_balanced:
            return balanced_order(self.train.targets.tolist(), seed=self.seed, epoch=epoch)
        return epoch_order(len(self.train), seed=self.seed, epoch=epoch)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled, whole batches, this process's share of each."""
        rank, world_size = self._process()
        batches = TrainBatches(
            len(self.train),
            self.batch_size,
            order=self.order,
            rank=rank,
            world_size=world_size,
            start=self.start,
        )
        return self._loader(self.train, batches)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Every image once over all processes, without padding."""
        rank, world_size = self._process()
        size = max(1, self.batch_size // world_size)
        indices = validation_batches(len(self.val), size, rank=rank, world_size=world_size)
        return self._loader(self.val, [[(0, index) for index in batch] for batch in indices])

    def resized_train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Training images as validation would see them, shuffled once, in whole batches.

        Raises:
            ValueError: they were not given.
        """
        if self.resized_train is None:
            raise ValueError("resized_train: got None, expected labelled images.")
        order = epoch_order(len(self.resized_train), seed=self.seed, epoch=0)
        size = min(self.batch_size, len(order))
        starts = range(0, len(order) - size + 1, size)
        batches = [[(0, index) for index in order[start : start + size]] for start in starts]
        return self._loader(self.resized_train, batches)

    def _loader(
        self, images: LabelledImages, batches: Sampler[list[Key]] | list[list[Key]]
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=self.collate,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
        )

    def _process(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
