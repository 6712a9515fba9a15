"""The LightningDataModule, its data sets and its batch order: wiring, nothing else."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.augment import Augmentation
from finetune.data.decode import decode_image
from finetune.data.discover import Sample
from finetune.data.preprocess import Preprocess
from finetune.errors import DataError, ImageError

Key = tuple[int, int]
"""Epoch and index: together with the seed, all that decides what a sample looks like."""


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Mix three numbers into a seed of 64 bits; equal on every machine and in every worker."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> list[int]:
    """Shuffle ``0 … num_samples - 1``; a function of the seed and the epoch alone."""
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    return [int(index) for index in order]


class TrainBatches(Sampler[list[Key]]):
    """Batches of one process: a new order each epoch, the same whole batch for any world size.

    The images left over after the last whole batch are not seen in that epoch; they differ from
    epoch to epoch.

    Args:
        num_samples: images of the training split, >= ``batch_size``.
        batch_size: images of one step over all processes, a multiple of ``world_size``.
        seed: of the order.
        rank: of this process.
        world_size: processes.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, seed: int, rank: int, world_size: int
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def sampler(self) -> "TrainBatches":
        """Lightning calls ``set_epoch`` of a batch sampler's ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self.num_samples, seed=self.seed, epoch=self.epoch)
        share = self.batch_size // self.world_size
        for batch in range(len(self)):
            start = batch * self.batch_size + self.rank * share
            yield [(self.epoch, index) for index in order[start : start + share]]


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Decoded, transformed images ``[3, S, S]`` with their class indices.

    Args:
        root: folder of the images.
        samples: the images of one split.
        class_names: the index of a class is its place here.
        transform: ``[H, W, 3]`` uint8 and a seed to ``[3, S, S]``.
        seed: of the augmentation.
        max_megapixels: larger images are refused.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[Sample],
        class_names: Sequence[str],
        *,
        transform: Callable[[npt.NDArray[np.uint8], int], Tensor],
        seed: int,
        max_megapixels: float,
    ) -> None:
        index_of = {name: index for index, name in enumerate(class_names)}
        self.root = root
        self.paths = [sample.path for sample in samples]
        self.labels = [index_of[sample.class_name] for sample in samples]
        self.transform = transform
        self.seed = seed
        self.max_megapixels = max_megapixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Return one image as epoch ``key[0]`` shows it.

        Raises:
            DataError: the file cannot be read (any more).
        """
        epoch, index = key
        path = self.root / self.paths[index]
        try:
            image = decode_image(path, max_megapixels=self.max_megapixels)
        except (ImageError, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        return self.transform(image, sample_seed(self.seed, epoch, index)), self.labels[index]


class Augmented:
    """Training transform: ``[H, W, 3]`` to a random ``[3, S, S]``, uint8."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def __call__(self, image: npt.NDArray[np.uint8], seed: int) -> Tensor:
        """Augment by the seed."""
        augmented = self.augmentation(image, seed=seed)
        return torch.from_numpy(np.ascontiguousarray(augmented.transpose(2, 0, 1)))


class Resized:
    """Validation transform: ``[H, W, 3]`` to ``[3, S, S]``, float32 in 0..255, never random."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, image: npt.NDArray[np.uint8], seed: int) -> Tensor:
        """Resize as prediction and every export do."""
        del seed
        chw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return self.preprocess.resize(chw)[0]


class ImageDataModule(LightningDataModule):
    """Training and validation loaders; the order and the augmentation do not depend on workers.

    Args:
        train: labelled images, augmented.
        val: labelled images, resized.
        batch_size: images of one step over all processes.
        workers: decoding processes of each training process.
        seed: of the order.
    """

    def __init__(
        self,
        train: LabelledImages,
        val: LabelledImages,
        *,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.first_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Say which epoch comes next."""
        return {"first_epoch": self.trainer.current_epoch + 1 if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start with that epoch."""
        self.first_epoch = int(state_dict["first_epoch"])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Shuffled, whole batches, this process's share of each."""
        rank, world_size = self._process()
        batches = TrainBatches(
            len(self.train), self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        # Lightning starts the workers, which fetch at once, before it calls `set_epoch`.
        batches.set_epoch(self.first_epoch)
        return self._loader(self.train, batches)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Every image once over all processes, without padding."""
        rank, world_size = self._process()
        share = range(rank, len(self.val), world_size)
        size = max(1, self.batch_size // world_size)
        batches = [
            [(0, index) for index in share[start : start + size]]
            for start in range(0, len(share), size)
        ]
        return self._loader(self.val, batches)

    def _loader(
        self, images: LabelledImages, batches: Sampler[list[Key]] | list[list[Key]]
    ) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _process(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
