"""The data set of one split: decode, keep where asked, transform."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.augment import Augmentation, use_one_thread
from finetune.data.batches import Key, sample_seed
from finetune.data.decode import decode_image
from finetune.data.discover import Sample
from finetune.data.image_cache import ImageCache
from finetune.data.preprocess import Preprocess
from finetune.data.stamps import Stamps
from finetune.errors import DataError, ImageError

Pixels = npt.NDArray[np.uint8]
"""``[H, W, 3]`` RGB."""


class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """Decoded, transformed images ``[3, S, S]`` with their targets.

    An image goes through ``prepare``, which is the same in every epoch and may be kept in a
    cache, and then through ``transform``. A file is decoded only while it is what ``stamps`` say;
    what is in the cache was.

    Args:
        root: folder of the images.
        samples: the images of one split.
        targets: ``[N]`` class indices (int64), or ``[N, C]`` of 0 and 1 (float32).
        prepare: ``[H, W, 3]`` to ``[h, w, 3]``, uint8; None leaves it as it is.
        transform: ``[h, w, 3]`` uint8 and a seed to ``[3, S, S]``.
        cache: for prepared images; None decodes in each epoch.
        slots: each image's place in the cache; None counts through.
        seed: of the augmentation.
        max_megapixels: larger images are refused.
        min_side_px: large JPEGs may be decoded at a reduced size, whose shorter side is not
            below this; None decodes at full size.
        stamps: of the images, when the run began; None lets anything pass.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[Sample],
        targets: Tensor,
        *,
        transform: Callable[[Pixels, int], Tensor],
        seed: int,
        max_megapixels: float,
        prepare: Callable[[Pixels], Pixels] | None = None,
        cache: ImageCache | None = None,
        slots: Sequence[int] | None = None,
        min_side_px: int | None = None,
        stamps: Stamps | None = None,
    ) -> None:
        self.root = root
        self.paths = [sample.path for sample in samples]
        self.targets = targets
        self.transform = transform
        self.seed = seed
        self.max_megapixels = max_megapixels
        self.prepare = prepare
        self.cache = cache
        self.slots = slots or range(len(self.paths))
        self.min_side_px = min_side_px
        self.stamps = stamps

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """Return the image of draw ``key[1]`` as epoch ``key[0]`` shows it.

        Raises:
            DataError: the file cannot be read (any more), or has changed.
        """
        epoch, draw = key
        index = draw % len(self)
        slot = self.slots[index]
        image = self.cache.get(slot) if self.cache is not None else None
        if image is None:
            image = self.decode(index)
            image = image if self.prepare is None else self.prepare(image)
            if self.cache is not None:
                self.cache.put(slot, image)
        return self.transform(image, sample_seed(self.seed, epoch, draw)), self.targets[index]

    def decode(self, index: int) -> Pixels:
        """Read one image anew.

        Raises:
            DataError: the file cannot be read (any more), or has changed.
        """
        path = self.root / self.paths[index]
        try:
            if self.stamps is not None and self.stamps.has_changed(index, path):
                raise DataError(
                    f"{path} has changed since the run began; put the old file back and resume, "
                    "or start anew."
                )
            return decode_image(
                path, max_megapixels=self.max_megapixels, min_side_px=self.min_side_px
            )
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"{path} cannot be read any more: {reason}. It could when the run began; put it "
                "back, or start anew."
            ) from None


def load_in_order(
    images: LabelledImages,
    batch_size: int,
    *,
    workers: int,
    pin_memory: bool,
    indices: Sequence[int] | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Make a loader that shows each image once, as epoch 0 does, in order.

    Args:
        images: of any split.
        batch_size: images of a batch, the last one smaller; >= 1.
        workers: decoding processes; no more are started than there are batches.
        pin_memory: for a GPU.
        indices: which images, in which order; None takes all.
    """
    chosen = range(len(images)) if indices is None else indices
    batches = [
        [(0, index) for index in chosen[start : start + batch_size]]
        for start in range(0, len(chosen), batch_size)
    ]
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=use_one_thread,
    )


def make_targets(
    samples: Sequence[Sample], class_names: Sequence[str], *, is_multilabel: bool
) -> Tensor:
    """Turn labels into numbers by the place of their name in ``class_names``.

    Returns:
        ``[N]`` int64, or ``[N, C]`` float32 with a 1 for each label where there may be several.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    if not is_multilabel:
        return torch.tensor([index_of[sample.labels[0]] for sample in samples])
    targets = torch.zeros(len(samples), len(class_names))
    for row, sample in enumerate(samples):
        for name in sample.labels:
            targets[row, index_of[name]] = 1
    return targets


class Augmented:
    """Training transform: ``[H, W, 3]`` to a random ``[3, S, S]``, uint8."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def __call__(self, image: Pixels, seed: int) -> Tensor:
        """Augment by the seed."""
        augmented = self.augmentation(image, seed=seed)
        return torch.from_numpy(np.ascontiguousarray(augmented.transpose(2, 0, 1)))


class Resized:
    """Validation transform: ``[H, W, 3]`` to ``[3, S, S]``, float32 in 0..255, never random."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, image: Pixels, seed: int) -> Tensor:
        """Resize as prediction and every export do."""
        del seed
        chw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return self.preprocess.resize(chw)[0]


class Rounded:
    """What a cache keeps of a validation image: ``[H, W, 3]`` to ``[S, S, 3]``, uint8."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.resized = Resized(preprocess)

    def __call__(self, image: Pixels) -> Pixels:
        """Resize as prediction does, to whole numbers."""
        hwc = self.resized(image, 0).permute(1, 2, 0)
        return hwc.round().to(torch.uint8).contiguous().numpy()


class Unchanged:
    """Validation transform of what `Rounded` made: ``[S, S, 3]`` to ``[3, S, S]``, float32."""

    def __call__(self, image: Pixels, seed: int) -> Tensor:
        """Only move the channels to the front."""
        del seed
        return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
