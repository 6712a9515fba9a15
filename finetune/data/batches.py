"""Which images an epoch shows, in which order, in which batches: functions of seed and epoch."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""Epoch and draw: together with the seed, all that decides what a sample looks like. A draw is
the image's index, plus the number of images for each time that the epoch has shown it before."""


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Mix three numbers into a seed of 64 bits; equal on every machine and in every worker."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> list[int]:
    """Shuffle ``0 … num_samples - 1``; a function of the seed and the epoch alone."""
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(num_samples).tolist()
    return order


def balanced_order(class_of: Sequence[int], *, seed: int, epoch: int) -> list[int]:
    """Choose as many draws as there are images, each class equally often, and shuffle them.

    With ``n`` images of ``C`` classes, each class gets ``n // C`` places, and the rest go to
    classes by chance. A class repeats an image only after all of its others. Draw ``d`` shows
    image ``d % n``: what is shown for the second time has another number, and so is augmented
    differently. A function of the arguments alone, so that processes that share the work agree
    without a word.

    Args:
        class_of: the class of each image.
        seed: of the choice.
        epoch: another one gives another choice.
    """
    rng = np.random.default_rng([seed, epoch])
    classes = np.asarray(class_of)
    present = np.unique(classes)
    places = np.full(len(present), len(classes) // len(present))
    places[rng.permutation(len(present))[: len(classes) % len(present)]] += 1
    chosen = []
    for name, count in zip(present, places, strict=True):
        members = np.flatnonzero(classes == name)
        rounds = -(-count // len(members))
        draws = [rng.permutation(members) + turn * len(classes) for turn in range(rounds)]
        chosen.append(np.concatenate([members[:0], *draws])[:count])
    order: list[int] = rng.permutation(np.concatenate(chosen)).tolist()
    return order


def validation_batches(
    num_samples: int, size: int, *, rank: int, world_size: int
) -> list[list[int]]:
    """Divide ``0 … num_samples - 1`` among the processes, each image once, without padding.

    All processes get equally many batches, none of them empty: with FSDP each forward pass is a
    meeting of all, and who stays away makes the others wait. Only where there are fewer images
    than processes, some get none.

    Args:
        num_samples: images of the validation split.
        size: largest batch of one process, >= 1; with several processes, 2 where it is 1.
        rank: of this process.
        world_size: processes.
    """
    share = range(rank, num_samples, world_size)
    if not share:
        return []
    if world_size > 1:
        size = max(2, size)  # else a process with one image less would lack a batch
    count = -(-len(range(0, num_samples, world_size)) // size)
    # A process whose images fill one batch less takes the last of them for one more.
    starts = [min(turn * size, len(share) - (count - turn)) for turn in range(count)]
    return [list(share[start:end]) for start, end in pairwise([*starts, len(share)])]


class TrainBatches(Sampler[list[Key]]):
    """Batches of one process: a new order each epoch, the same whole batch for any world size.

    The images left over after the last whole batch are not seen in that epoch; they differ from
    epoch to epoch.

    Args:
        num_samples: images of the training split, >= ``batch_size``.
        batch_size: images of one step over all processes, a multiple of ``world_size``.
        order: the indices of an epoch, ``num_samples`` of them; the same in every process.
        rank: of this process.
        world_size: processes.
        start: an epoch, and how many of its batches have been seen before; they are left out.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        order: Callable[[int], Sequence[int]],
        rank: int,
        world_size: int,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.order = order
        self.rank = rank
        self.world_size = world_size
        self.start = start
        # Lightning starts the workers, which fetch at once, before it calls `set_epoch`.
        self.epoch = start[0]

    @property
    def sampler(self) -> "TrainBatches":
        """Lightning calls ``set_epoch`` of a batch sampler's ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Count the batches of a whole epoch; Lightning counts those seen before itself."""
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order(self.epoch)
        share = self.batch_size // self.world_size
        epoch, seen = self.start
        for batch in range(seen if self.epoch == epoch else 0, len(self)):
            start = batch * self.batch_size + self.rank * share
            yield [(self.epoch, index) for index in order[start : start + share]]
