"""Images that come together are answered together, each with its own answer."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.serving.batcher import Batcher


def _image(value: float) -> Tensor:
    return torch.full((1, 3, 2, 2), float(value))


class _Mean:
    """Answers with the mean of each image; remembers the sizes of the batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        assert self.go_on.wait(10)
        if images.min() < 0:
            raise ValueError("negative")
        return images.mean(dim=(1, 2, 3)).unsqueeze(1)


def _run(
    model: Callable[[Tensor], Tensor],
    conversation: Callable[[Batcher], Awaitable[Any]],
    batch_size: int,
) -> Any:
    async def main() -> Any:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(model, executor, batch_size=batch_size)
            task = asyncio.create_task(batcher.run())
            try:
                return await conversation(batcher)
            finally:
                task.cancel()

    return asyncio.run(main())


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_each_gets_its_own_answer_from_few_passes(batch_size: int) -> None:
    model = _Mean()

    async def conversation(batcher: Batcher) -> list[Tensor]:
        return await asyncio.gather(*(batcher.answer(_image(value)) for value in range(40)))

    answers = _run(model, conversation, batch_size)
    assert [float(answer) for answer in answers] == list(range(40))
    assert max(model.sizes) == batch_size
    assert len(model.sizes) == -(-40 // batch_size)


def test_a_failure_reaches_those_who_asked_and_nobody_after_them() -> None:
    async def conversation(batcher: Batcher) -> tuple[list[Any], Tensor]:
        both = (batcher.answer(_image(value)) for value in (-1, 2))
        failed = await asyncio.gather(*both, return_exceptions=True)
        return failed, await batcher.answer(_image(3))

    failed, after = _run(_Mean(), conversation, 8)
    assert [type(error) for error in failed] == [ValueError, ValueError]
    assert float(after) == 3


def test_who_goes_away_costs_nothing_and_disturbs_nobody() -> None:
    model = _Mean()
    model.go_on.clear()

    async def conversation(batcher: Batcher) -> Tensor:
        first = asyncio.create_task(batcher.answer(_image(1)))
        while not model.sizes:  # the first is in the network
            await asyncio.sleep(0.001)
        impatient = asyncio.create_task(batcher.answer(_image(2)))
        patient = asyncio.create_task(batcher.answer(_image(3)))
        await asyncio.sleep(0)
        impatient.cancel()
        first.cancel()
        model.go_on.set()
        return await patient

    assert float(_run(model, conversation, 8)) == 3
    assert model.sizes == [1, 1]


def test_a_full_queue_makes_later_ones_wait_and_loses_none() -> None:
    model = _Mean()
    model.go_on.clear()

    async def conversation(batcher: Batcher) -> tuple[int, list[Tensor]]:
        asked = [asyncio.create_task(batcher.answer(_image(value))) for value in range(30)]
        await asyncio.sleep(0.05)
        held = batcher._waiting.qsize()
        model.go_on.set()
        return held, await asyncio.gather(*asked)

    held, answers = _run(model, conversation, 2)
    assert held == 8
    assert [float(answer) for answer in answers] == list(range(30))
