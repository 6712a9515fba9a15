"""From an upload's bytes to an answer: decoded in threads, answered in batches.

Shapes: ``B`` images, ``C`` classes, ``S`` pixels a side.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.data.decode import decode_image, read_header
from finetune.errors import ImageError
from finetune.models.answers import Answer, Task, read_answers
from finetune.models.explain import NoMapError
from finetune.serving.batcher import Batcher
from finetune.serving.pictures import heat_url, image_url

NOT_FINITE = "the model answered with NaN or infinity"
_LARGE_PIXELS = 25_000_000
_MAX_DECODERS = 4


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        probabilities: float ``[B, 3, S, S]`` in 0..255 to ``[B, C]``; never called by two threads.
        resize: uint8 ``[3, H, W]`` to float ``[1, 3, S, S]`` in 0..255.
        heat: an image ``[1, 3, S, S]`` in 0..255 and a class's index to ``[S, S]`` in 0..1;
            raises `finetune.models.explain.NoMapError` where there is none.
        class_names: ``C`` names in the order of the outputs.
        task: what the probabilities mean.
        temperature: that the logits were divided by.
        abstain_below: less probable answers are better left to a person; None where the model
            does not say.
        coverage: share of images whose set should hold the true class; None without sets.
        read_sets: probabilities ``[B, C]`` and ``C`` names to the classes that may be true, the
            most probable first; None for a model without sets.
        max_megapixels: larger images are refused from their header.
        model_sha256: of the weights.
        versions: of libraries, by name.
    """

    probabilities: Callable[[Tensor], Tensor]
    resize: Callable[[Tensor], Tensor]
    heat: Callable[[Tensor, int], Tensor]
    class_names: Sequence[str]
    task: Task
    temperature: float
    abstain_below: float | None
    coverage: float | None
    read_sets: Callable[[Tensor, Sequence[str]], list[tuple[str, ...]]] | None
    max_megapixels: float
    model_sha256: str
    versions: Mapping[str, str]


class Reply(NamedTuple):
    """What is said about one image, and how far it may be trusted.

    Attributes:
        answer: the labels and their probabilities.
        abstained: whether it is too improbable; None where the model has no threshold.
        prediction_set: the classes that may be true; None where the model has no sets.
    """

    answer: Answer
    abstained: bool | None
    prediction_set: tuple[str, ...] | None


@dataclass(frozen=True)
class Explanation:
    """What the model saw and looked at.

    Attributes:
        label: the class that is explained, the most probable one.
        crop: what the model saw, a PNG as a ``data:`` URL.
        heat: of the same size, transparent where nothing speaks for the class; None where there
            is no map.
        reason: why there is none.
    """

    label: str
    crop: str
    heat: str | None
    reason: str | None


class Answering:
    """Answers for one model; its threads live as long as `running`.

    Args:
        served: the model.
        batch_size: most images of one forward pass, >= 1.
    """

    def __init__(self, served: Served, *, batch_size: int) -> None:
        self.served = served
        self.batch_size = batch_size
        # Large photographs take gigabytes while they are resized: one at a time.
        self._one_large = threading.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the threads; stop them at the end, without waiting for what nobody waits for."""
        self._decoders = ThreadPoolExecutor(min(_MAX_DECODERS, os.cpu_count() or 1), "decode")
        self._network = ThreadPoolExecutor(1, "network")
        self._batcher = Batcher(
            self.served.probabilities, self._network, batch_size=self.batch_size
        )
        batches = asyncio.create_task(self._batcher.run())
        try:
            yield
        finally:
            batches.cancel()
            with suppress(asyncio.CancelledError):
                await batches
            for pool in (self._decoders, self._network):
                pool.shutdown(wait=False, cancel_futures=True)

    async def predict(self, contents: Sequence[bytes]) -> list[Reply | str]:
        """Answer each file in order; one that cannot be read has its reason in its place."""
        answers: list[Reply | str] = []
        # So many at a time that one request fills no more than one batch.
        for start in range(0, len(contents), self.batch_size):
            part = contents[start : start + self.batch_size]
            answers += await asyncio.gather(*(self._predict_one(content) for content in part))
        return answers

    async def explain(self, content: bytes) -> Explanation | str:
        """Show what speaks for the most probable class, or say why the file cannot be read."""
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._decoders, self._read, content)
        if isinstance(image, str):
            return image
        best = int((await self._batcher.answer(image)).argmax())
        heat, reason = await loop.run_in_executor(self._network, self._heat, image, best)
        label = self.served.class_names[best]
        return await loop.run_in_executor(self._decoders, _draw, label, image, heat, reason)

    async def _predict_one(self, content: bytes) -> Reply | str:
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._decoders, self._read, content)
        if isinstance(image, str):
            return image
        numbers = await self._batcher.answer(image)
        if not numbers.isfinite().all():
            return NOT_FINITE
        return _reply(numbers.unsqueeze(0), self.served)

    def _read(self, content: bytes) -> Tensor | str:
        """Decode and resize to ``[1, 3, S, S]``, or say in one line why not."""
        limit = self.served.max_megapixels
        try:
            header = read_header(content)
            is_large = header.width_px * header.height_px > _LARGE_PIXELS
            with self._one_large if is_large else nullcontext():
                pixels = decode_image(content, max_megapixels=limit)
                return self.served.resize(torch.from_numpy(pixels).permute(2, 0, 1))
        except ImageError as error:
            return " ".join(str(error).split())

    def _heat(self, image: Tensor, class_index: int) -> tuple[Tensor | None, str | None]:
        try:
            return self.served.heat(image, class_index), None
        except NoMapError as error:
            return None, str(error)


def _reply(numbers: Tensor, served: Served) -> Reply:
    """Read ``[1, C]``."""
    names, below = served.class_names, served.abstain_below
    (answer,) = read_answers(numbers, names, served.task)
    abstained = None if below is None else answer.probability < below
    sets = [None] if served.read_sets is None else served.read_sets(numbers, names)
    return Reply(answer, abstained, sets[0])


def _draw(label: str, image: Tensor, heat: Tensor | None, reason: str | None) -> Explanation:
    return Explanation(label, image_url(image), None if heat is None else heat_url(heat), reason)
