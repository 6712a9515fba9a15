"""What the frozen first part of a backbone says of each image, kept to train the rest on.

Shapes: ``N`` images, ``B`` of a batch, ``A...`` of one activation, ``C`` classes.
"""

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from finetune.data.batches import Key
from finetune.data.labelled_images import LabelledImages, load_in_order
from finetune.errors import RunError


class Activations(Dataset[tuple[Tensor, Tensor]]):
    """Activations ``[A...]`` with their targets, in the place of `LabelledImages`.

    Every epoch shows the same. Forked workers share the memory; a worker that is started anew
    cannot take it along, so use ``num_workers=0`` there, which is the fastest anyway: there is
    nothing to decode. Give `stack_activations` as ``collate_fn``.

    Args:
        activations: ``[N, A...]``.
        targets: ``[N]`` class indices (int64), or ``[N, C]`` of 0 and 1 (float32).
    """

    def __init__(self, activations: Tensor, targets: Tensor) -> None:
        self.activations = activations
        self.targets = targets

    def __len__(self) -> int:
        return len(self.activations)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """Return the activation of draw ``key[1]``, in any epoch; not a copy."""
        index = key[1] % len(self)
        return self.activations[index], self.targets[index]

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("activations do not travel to another process; use workers=0")


class _Store:
    """Room for ``[N, A...]``, in memory or in a file without a name that dies with the process.

    What is channels_last in ``example`` ``[B, A...]`` lies so in the store.
    """

    def __init__(self, example: Tensor, num_images: int, folder: Path | None) -> None:
        self._is_channels_last = _is_channels_last(example)
        self._shape = (num_images, *self._in_order(example).shape[1:])
        self._dtype = example.dtype
        self._num_bytes = activation_bytes(example, num_images)
        self._folder = folder
        self._rows = torch.empty(self._shape if folder is None else 0, dtype=self._dtype)
        self._fd = -1
        if folder is not None:
            with self._explained():
                self._fd = _open_unnamed(folder)
                _reserve(self._fd, self._num_bytes)

    def write(self, batch: Tensor, start: int) -> None:
        rows = self._in_order(batch).cpu().contiguous()
        if self._folder is None:
            self._rows[start : start + len(rows)] = rows
            return
        # Not through mapped memory: a disk that is full after all would kill the process.
        content = memoryview(cast(Any, rows.flatten().view(torch.uint8).numpy()))
        offset = start * (self._num_bytes // self._shape[0])
        with self._explained():
            while content:
                written = os.pwrite(self._fd, content, offset)
                content, offset = content[written:], offset + written

    def read(self) -> Tensor:
        """Return all of it, ``[N, A...]``; it outlives the store."""
        rows = self._rows
        if self._folder is not None:
            mapped = mmap.mmap(self._fd, self._num_bytes)
            rows = torch.frombuffer(mapped, dtype=self._dtype).view(self._shape)
        return rows.permute(0, 3, 1, 2) if self._is_channels_last else rows

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _in_order(self, batch: Tensor) -> Tensor:
        return batch.permute(0, 2, 3, 1) if self._is_channels_last else batch

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            raise RunError(
                f"{self._folder}: the activations of {self._shape[0]} images, "
                f"{self._num_bytes / 1e9:.2f} GB, cannot be kept there: {error.strerror}. "
                "Make room, choose a folder on another disk, or freeze more stages: "
                "their answers are smaller."
            ) from None


def compute_activations(
    prefix: nn.Module,
    images: LabelledImages,
    *,
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    workers: int,
    folder: Path | None,
    on_progress: Callable[[int], None] | None = None,
) -> Activations:
    """Compute the activations of all images, as the steps of a training would.

    Every batch has the same size, the last one filled up: libraries may choose another algorithm
    for another size, and so change the last bits.

    Args:
        prefix: ``[B, 3, S, S]`` to ``[B, A...]``; see `finetune.models.prefix`. It is moved to
            ``device`` and left in eval mode, as its parameters are frozen.
        images: the same in every epoch; they are read as epoch 0 shows them.
        normalise: ``[B, 3, S, S]`` in 0..255 to the prefix's input, on ``device``.
        device: what computes.
        dtype: float32, or bfloat16 or float16 by autocast; what is stored has the type that the
            prefix then gives.
        batch_size: of the training, of one process, >= 1.
        workers: decoding processes.
        folder: an existing one, on whose disk the activations lie until the process ends,
            whichever way: the file has no name. None keeps them in memory.
        on_progress: called with the number of images done so far.

    Raises:
        DataError: a file cannot be read (any more).
        RunError: the disk is full, or nothing can be written to ``folder``.
        ValueError: there are no images.
    """
    if not len(images):
        raise ValueError("got no images, expected at least one")
    prefix.to(device).eval()
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    done = 0
    with ExitStack() as stack:
        loader = load_in_order(
            images, batch_size, workers=workers, pin_memory=device.type == "cuda"
        )
        for batch, _ in loader:
            filled = batch[torch.arange(batch_size) % len(batch)]
            with torch.no_grad(), autocast:
                inputs = normalise(filled.to(device, non_blocking=True))
                outputs = prefix(inputs.contiguous(memory_format=torch.channels_last))
            if not done:
                store = _Store(outputs, len(images), folder)
                stack.callback(store.close)
            store.write(outputs[: len(batch)], done)
            done += len(batch)
            if on_progress is not None:
                on_progress(done)
        return Activations(store.read(), images.targets)


def activation_bytes(prefix_output_example: Tensor, num_images: int) -> int:
    """Count the bytes that the activations of ``num_images`` take.

    Args:
        prefix_output_example: ``[B, A...]`` of any B >= 1, in the type that will be stored.
        num_images: >= 0.
    """
    one = prefix_output_example[0]
    return one.numel() * one.element_size() * num_images


def stack_activations(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Make a batch ``[B, A...]``, and its targets, which keeps channels_last.

    ``torch.stack`` does not, nor does a data loader's own way with workers.
    """
    activations = [activation for activation, _ in samples]
    targets = torch.stack([target for _, target in samples])
    if activations[0].ndim == 3 and _is_channels_last(activations[0].unsqueeze(0)):
        rows = torch.stack([activation.permute(1, 2, 0) for activation in activations])
        return rows.permute(0, 3, 1, 2), targets
    return torch.stack(activations), targets


def _is_channels_last(batch: Tensor) -> bool:
    # With one channel, or maps of one pixel, both orders are the same.
    return (
        batch.ndim == 4
        and batch.is_contiguous(memory_format=torch.channels_last)
        and not batch.is_contiguous()
    )


def _open_unnamed(folder: Path) -> int:
    """Open a new file that no folder lists; what is written to it goes when it is closed."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _reserve(fd: int, num_bytes: int) -> None:
    """Take the room before anything is computed; OSError where there is not enough.

    Where the system cannot promise it, writing finds out.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(fd, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
