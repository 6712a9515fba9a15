"""From image files to predictions, one after another, in constant memory.

Shapes: ``B`` images in a batch, ``K <= B`` of them readable, ``C`` classes, ``S`` pixels a side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.decode import decode_image
from finetune.errors import ConfigError, FinetuneError, ImageError
from finetune.models.answers import SEPARATOR, Answer, Task, read_answers

NOT_FINITE = "the model answered with NaN or infinity"
"""The one error of a prediction that is not the file's fault."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says about one file.

    Attributes:
        path: the file, as given.
        label: the most probable class; with ``multilabel``, the labels given, joined by ``|``,
            empty where there are none; ``None`` with an error.
        probability: of this answer, in [0, 1]; ``None`` with an error.
        probabilities: ``C`` numbers in the order of the class names; empty with an error.
        error: why there is no prediction, in one line without the path; else ``None``.
    """

    path: Path
    label: str | None
    probability: float | None
    probabilities: tuple[float, ...]
    error: str | None = None


class _Loaded(NamedTuple):
    """A batch as a worker sends it."""

    paths: list[Path]
    errors: list[str | None]  # one per path
    images: Tensor | None  # [K, 3, S, S], the paths without an error; None if K = 0


class _Images(Dataset[tuple[Path, Tensor | str]]):
    """Decoded and resized images by path: ``[1, 3, S, S]``, or why there is none."""

    def __init__(self, resize: Callable[[Tensor], Tensor], max_megapixels: float) -> None:
        self.resize = resize
        self.max_megapixels = max_megapixels

    def __getitem__(self, path: Path) -> tuple[Path, Tensor | str]:
        try:
            pixels = decode_image(path, max_megapixels=self.max_megapixels)
        except ImageError as error:
            return path, " ".join(str(error).split())
        return path, self.resize(torch.from_numpy(pixels).permute(2, 0, 1))


def predict_images(
    paths: Iterable[Path],
    *,
    model: Callable[[Tensor], Tensor],
    preprocess_resize: Callable[[Tensor], Tensor],
    class_names: Sequence[str],
    task: Task,
    batch_size: int,
    workers: int,
    max_megapixels: float = 200,
) -> Iterator[Prediction]:
    """Predict files lazily, in the order given; every file gets exactly one prediction.

    Memory does not grow with the number of files: ``paths`` may be an endless generator and is
    read at most ``2 * workers + 1`` batches ahead. A file that cannot be read gives a prediction
    with ``error`` and does not stop the others. The numbers do not depend on ``workers``, and on
    ``batch_size`` only by the rounding of the model's own kernels.

    Args:
        paths: image files.
        model: float ``[K, 3, S, S]`` in 0..255 on the CPU to probabilities ``[K, C]`` on any
            device; called without gradients, never with an empty batch.
        preprocess_resize: uint8 ``[3, H, W]`` to float ``[1, 3, S, S]`` in 0..255; runs in the
            workers, so it must be picklable where processes are spawned (macOS, Windows).
        class_names: ``C`` names in the order of the model's outputs.
        task: what the probabilities mean.
        batch_size: files per batch, >= 1.
        workers: processes that decode and resize, each with one torch thread; 0 does so in this
            process.
        max_megapixels: larger images are an error, known from their header.

    Raises:
        ConfigError: at once, if ``batch_size`` or ``workers`` is out of range.
        FinetuneError: while iterating, if a worker process dies.
        ValueError: while iterating, if the model's answer is no ``[K, C]`` of probabilities.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: got {batch_size}, expected an integer >= 1.")
    if workers < 0:
        raise ConfigError(f"workers: got {workers}, expected an integer >= 0.")
    loader: DataLoader[_Loaded] = DataLoader(
        _Images(preprocess_resize, max_megapixels),  # type: ignore[arg-type]
        # The paths themselves are the indices: only this process iterates over them, lazily.
        batch_sampler=_batched(paths, batch_size),
        num_workers=workers,
        collate_fn=_collate,
    )
    return _predict(loader, model, tuple(class_names), task)


def _predict(
    loader: DataLoader[_Loaded],
    model: Callable[[Tensor], Tensor],
    class_names: tuple[str, ...],
    task: Task,
) -> Iterator[Prediction]:
    try:
        for loaded in loader:
            yield from _predict_batch(loaded, model, class_names, task)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise FinetuneError(
            f"A process that reads images died: {str(error).rstrip('. ')}. The usual reason is "
            "too little memory or shared memory (/dev/shm). Use fewer workers (workers=0 needs "
            "no shared memory) or a smaller batch_size."
        ) from error


def _predict_batch(
    loaded: _Loaded,
    model: Callable[[Tensor], Tensor],
    class_names: tuple[str, ...],
    task: Task,
) -> Iterator[Prediction]:
    answers: Iterator[Answer | None] = iter(())
    if loaded.images is not None:
        with torch.inference_mode():
            answers = iter(_answers(model(loaded.images), len(loaded.images), class_names, task))
    for path, error in zip(loaded.paths, loaded.errors, strict=True):
        if error is not None:
            yield Prediction(path, None, None, (), error)
            continue
        answer = next(answers)
        if answer is None:
            yield Prediction(path, None, None, (), NOT_FINITE)
            continue
        label = SEPARATOR.join(answer.labels)
        yield Prediction(path, label, answer.probability, answer.probabilities)


def _answers(
    numbers: Tensor, count: int, class_names: Sequence[str], task: Task
) -> list[Answer | None]:
    """Check the model's probabilities and read them, image by image; None if not finite."""
    if numbers.shape != (count, len(class_names)):
        raise ValueError(
            f"model: got an answer of shape {list(numbers.shape)}, "
            f"expected [{count}, {len(class_names)}] (images, classes)."
        )
    is_finite = numbers.isfinite().all(1)
    if ((numbers[is_finite] < 0) | (numbers[is_finite] > 1.01)).any():
        raise ValueError("model: got numbers outside 0..1, expected probabilities, not logits.")
    answers = read_answers(numbers, class_names, task)
    return [answer if ok else None for answer, ok in zip(answers, is_finite.tolist(), strict=True)]


def _batched(paths: Iterable[Path], batch_size: int) -> Iterator[list[Path]]:
    remaining = iter(paths)
    while batch := list(islice(remaining, batch_size)):
        yield batch


def _collate(items: list[tuple[Path, Tensor | str]]) -> _Loaded:
    images = [image for _, image in items if isinstance(image, Tensor)]
    return _Loaded(
        paths=[path for path, _ in items],
        errors=[error if isinstance(error, str) else None for _, error in items],
        images=torch.cat(images) if images else None,
    )
