"""From image files to predictions, one after another, in constant memory.

Shapes: ``B`` images in a batch, ``K <= B`` of them readable and of one size, ``C`` classes, ``F``
features, ``S`` pixels a side.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.decode import decode_image
from finetune.errors import ConfigError, FinetuneError, ImageError
from finetune.models.answers import SEPARATOR, Answer, Task
from finetune.prediction.decision import Decision, SetReader, read_decided, read_decided_sets

NOT_FINITE = "the model answered with NaN or infinity"
"""The one error of a prediction that is not the file's fault."""


Outputs = Tensor | tuple[Tensor, Tensor]
"""Of a model: probabilities ``[K, C]``, or these and features ``[K, F]``."""


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
        abstained: whether the answer is less probable than asked; ``None`` where nobody asked, and
            with an error.
        prediction_set: the classes that may be true, the most probable first; ``None`` where
            nobody asked, and with an error.
        features: ``[F]`` float32, where the model gives them; ``None`` with an error.
    """

    path: Path
    label: str | None
    probability: float | None
    probabilities: tuple[float, ...]
    error: str | None = None
    abstained: bool | None = None
    prediction_set: tuple[str, ...] | None = None
    features: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


class _Loaded(NamedTuple):
    """A batch as a worker sends it."""

    paths: list[Path]
    errors: list[str | None]  # one per path
    # Which paths, and their images [K, 3, H, W]; one group unless the sizes differ.
    groups: list[tuple[list[int], Tensor]]


class _Read(NamedTuple):
    """What is said about one image; no answer where the model's is not finite."""

    answer: Answer | None
    prediction_set: tuple[str, ...] | None
    features: npt.NDArray[np.float32] | None


_NOTHING = _Read(None, None, None)


class _Images(Dataset[tuple[Path, Tensor | str]]):
    """Decoded and resized images by path: ``[1, 3, H, W]``, or why there is none."""

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
    model: Callable[[Tensor], Outputs],
    preprocess_resize: Callable[[Tensor], Tensor],
    class_names: Sequence[str],
    task: Task,
    batch_size: int,
    workers: int,
    max_megapixels: float = 200,
    threshold: float | None = None,
    abstain: float | None = None,
    sets: SetReader | None = None,
) -> Generator[Prediction, None, None]:
    """Predict files lazily, in the order given; every file gets exactly one prediction.

    Memory does not grow with the number of files: ``paths`` may be an endless generator and is
    read at most ``2 * workers + 1`` batches ahead. A file that cannot be read gives a prediction
    with ``error`` and does not stop the others. The numbers do not depend on ``workers``, and on
    ``batch_size`` only by the rounding of the model's own kernels.

    Args:
        paths: image files.
        model: float ``[K, 3, S, S]`` in 0..255 on the CPU to probabilities ``[K, C]`` on any
            device, or to these and features ``[K, F]``; called without gradients, never with an
            empty batch.
        preprocess_resize: uint8 ``[3, H, W]`` to float ``[1, 3, S, S]`` in 0..255; runs in the
            workers, so it must be picklable where processes are spawned (macOS, Windows). It may
            give images of several sizes: those of one size in a batch are answered together.
        class_names: ``C`` names in the order of the model's outputs.
        task: what the probabilities mean.
        batch_size: files per batch, >= 1.
        workers: processes that decode and resize, each with one torch thread; 0 does so in this
            process.
        max_megapixels: larger images are an error, known from their header.
        threshold: of a label; see `finetune.prediction.decision`.
        abstain: answers less probable than this are marked as abstained; None marks none.
        sets: gives the classes that may be true; None for no sets.

    Raises:
        ConfigError: at once, if ``batch_size`` or ``workers`` is out of range, or if there are
            more than two classes for a ``threshold``.
        FinetuneError: while iterating, if a worker process dies.
        ValueError: while iterating, if the model's answer is no ``[K, C]`` of probabilities.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: got {batch_size}, expected an integer >= 1.")
    if workers < 0:
        raise ConfigError(f"workers: got {workers}, expected an integer >= 0.")
    decision = Decision(tuple(class_names), task, threshold, abstain, sets)
    loader: DataLoader[_Loaded] = DataLoader(
        _Images(preprocess_resize, max_megapixels),  # type: ignore[arg-type]
        # The paths themselves are the indices: only this process iterates over them, lazily.
        batch_sampler=_batched(paths, batch_size),
        num_workers=workers,
        collate_fn=_collate,
    )
    return _predict(loader, model, decision)


def _predict(
    loader: DataLoader[_Loaded], model: Callable[[Tensor], Outputs], decision: Decision
) -> Generator[Prediction, None, None]:
    try:
        for loaded in loader:
            yield from _predict_batch(loaded, model, decision)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise FinetuneError(
            f"A process that reads images died: {str(error).rstrip('. ')}. The usual reason is "
            "too little memory or shared memory (/dev/shm). Use fewer workers (workers=0 needs "
            "no shared memory) or a smaller batch_size."
        ) from error


def _predict_batch(
    loaded: _Loaded, model: Callable[[Tensor], Outputs], decision: Decision
) -> list[Prediction]:
    answers: dict[int, _Read] = {}
    for places, images in loaded.groups:
        with torch.inference_mode():
            answers.update(zip(places, _answer(model(images), len(images), decision), strict=True))
    predictions = []
    for place, (path, error) in enumerate(zip(loaded.paths, loaded.errors, strict=True)):
        answer, prediction_set, features = answers.get(place, _NOTHING)
        if answer is None:
            predictions.append(Prediction(path, None, None, (), error or NOT_FINITE))
            continue
        label = SEPARATOR.join(answer.labels)
        abstained = decision.abstains(answer.probability)
        predictions.append(
            Prediction(
                path,
                label,
                answer.probability,
                answer.probabilities,
                abstained=abstained,
                prediction_set=prediction_set,
                features=features,
            )
        )
    return predictions


def _answer(outputs: Outputs, count: int, decision: Decision) -> list[_Read]:
    """Check what the model says, and read it image by image; no answer where it is not finite."""
    numbers, features = outputs if isinstance(outputs, tuple) else (outputs, None)
    class_names = decision.class_names
    if numbers.shape != (count, len(class_names)):
        raise ValueError(
            f"model: got an answer of shape {list(numbers.shape)}, "
            f"expected [{count}, {len(class_names)}] (images, classes)."
        )
    is_finite = numbers.isfinite().all(1)
    if ((numbers[is_finite] < 0) | (numbers[is_finite] > 1.01)).any():
        raise ValueError("model: got numbers outside 0..1, expected probabilities, not logits.")
    rows = [None] * count if features is None else list(features.float().cpu().numpy())
    return [
        _Read(answer, prediction_set, row) if ok else _NOTHING
        for answer, prediction_set, row, ok in zip(
            read_decided(numbers, decision),
            read_decided_sets(numbers, decision),
            rows,
            is_finite.tolist(),
            strict=True,
        )
    ]


def _batched(paths: Iterable[Path], batch_size: int) -> Iterator[list[Path]]:
    remaining = iter(paths)
    while batch := list(islice(remaining, batch_size)):
        yield batch


def _collate(items: list[tuple[Path, Tensor | str]]) -> _Loaded:
    by_size: dict[torch.Size, tuple[list[int], list[Tensor]]] = {}
    for place, (_, image) in enumerate(items):
        if isinstance(image, Tensor):
            places, images = by_size.setdefault(image.shape, ([], []))
            places.append(place)
            images.append(image)
    return _Loaded(
        paths=[path for path, _ in items],
        errors=[error if isinstance(error, str) else None for _, error in items],
        groups=[(places, torch.cat(images)) for places, images in by_size.values()],
    )
