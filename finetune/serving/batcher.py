"""Requests that arrive together are answered by one forward pass.

Shapes: ``C`` classes, ``S`` pixels a side.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress

import torch
from torch import Tensor

MAX_WAIT_SECONDS = 0.004
"""What the first image of a batch waits for others; a pass of a small network takes longer."""
_BATCHES_WAITING = 4


class Batcher:
    """Collects single images into batches; make and use it inside a running event loop.

    Images wait in a queue of a few batches. Where it is full, `answer` waits for a place, so that
    memory stays bounded and nothing is lost.

    Args:
        model: float ``[B, 3, S, S]`` to ``[B, C]``; called in ``executor``, one batch at a time.
        executor: with one thread.
        batch_size: most images of one forward pass, >= 1.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], executor: Executor, *, batch_size: int
    ) -> None:
        self._model = model
        self._executor = executor
        self._batch_size = batch_size
        places = _BATCHES_WAITING * batch_size
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue(places)

    async def answer(self, image: Tensor) -> Tensor:
        """Give ``[C]`` for an image ``[1, 3, S, S]``; raises what the model raises."""
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        await self._waiting.put((image, future))
        return await future

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            batch = await self._collect()
            # Somebody who has gone away needs no answer.
            batch = [(image, future) for image, future in batch if not future.done()]
            if batch:
                await self._answer(batch)

    async def _collect(self) -> list[tuple[Tensor, asyncio.Future[Tensor]]]:
        batch = [await self._waiting.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                while len(batch) < self._batch_size:
                    batch.append(await self._waiting.get())
        return batch

    async def _answer(self, batch: list[tuple[Tensor, asyncio.Future[Tensor]]]) -> None:
        images = torch.cat([image for image, _ in batch])
        try:
            numbers = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._model, images
            )
        except Exception as error:  # noqa: BLE001 - each who asked is told; the next batch may do
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), row in zip(batch, numbers, strict=True):
            if not future.done():
                future.set_result(row)
