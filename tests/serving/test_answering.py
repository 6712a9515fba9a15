"""From bytes to answers: in order, each file's trouble its own."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import finetune.serving.answering
from finetune.commands.serve import as_served
from finetune.exports.bundle import Model
from finetune.models.explain import NoMapError
from finetune.serving.answering import NOT_FINITE, Answering, Explanation, Reply, Served


@pytest.fixture(scope="module")
def served(model: Model) -> Served:
    return as_served(model)


def _run(served: Served, conversation: Callable[[Answering], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        answering = Answering(served, batch_size=4)
        async with answering.running():
            return await conversation(answering)

    return asyncio.run(main())


def test_many_files_are_answered_in_order_with_errors_in_their_places(
    served: Served, model: Model, pictures: list[bytes], tmp_path: Any
) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(len(pictures))]
    for path, content in zip(paths, pictures, strict=True):
        path.write_bytes(content)
    contents = [b"no image", *pictures, pictures[0][:100]]
    answers = _run(served, lambda answering: answering.predict(contents))
    assert "not an image" in answers[0]
    assert "damaged" in answers[-1]
    expected = [tuple(p.probabilities.values()) for p in model.predict(paths)]
    got = [reply.answer.probabilities for reply in answers[1:-1]]
    assert torch.tensor(got).sub(torch.tensor(expected)).abs().max() < 1e-6
    assert len({round(row[0], 6) for row in got}) > 30  # or the order would not show


def test_numbers_that_are_not_finite_are_an_error_of_their_image(
    served: Served, pictures: list[bytes]
) -> None:
    def half(images: Tensor) -> Tensor:
        numbers = served.probabilities(images).clone()
        numbers[images.mean(dim=(1, 2, 3)) < 120] = torch.nan
        return numbers

    broken = replace(served, probabilities=half)
    answers = _run(broken, lambda answering: answering.predict(pictures))
    assert 0 < answers.count(NOT_FINITE) < len(answers)
    assert all(isinstance(answer, Reply) for answer in answers if answer != NOT_FINITE)


def test_what_may_be_true_and_what_is_too_improbable_comes_with_the_answer(
    served: Served, doubtful: Served, pictures: list[bytes]
) -> None:
    (plain,) = _run(served, lambda answering: answering.predict(pictures[:1]))
    assert (plain.abstained, plain.prediction_set) == (None, None)
    (reply,) = _run(doubtful, lambda answering: answering.predict(pictures[:1]))
    assert reply.answer == plain.answer
    assert reply.abstained is True
    numbers = dict(zip(served.class_names, reply.answer.probabilities, strict=True))
    assert list(reply.prediction_set) == sorted(numbers, key=lambda name: -numbers[name])
    at_limit = replace(doubtful, abstain_below=reply.answer.probability)
    (reply,) = _run(at_limit, lambda answering: answering.predict(pictures[:1]))
    assert reply.abstained is False


def test_an_explanation_is_of_the_most_probable_class(
    served: Served, pictures: list[bytes]
) -> None:
    asked = []

    def heat(image: Tensor, class_index: int) -> Tensor:
        asked.append(class_index)
        assert image.shape == (1, 3, 64, 64)
        if len(asked) == 2:
            raise NoMapError("not today")
        return torch.zeros(64, 64)

    async def conversation(answering: Answering) -> list[Any]:
        (reply,) = await answering.predict(pictures[:1])
        return [reply.answer, *[await answering.explain(pictures[0]) for _ in range(2)]]

    answer, with_map, without = _run(replace(served, heat=heat), conversation)
    best = answer.probabilities.index(max(answer.probabilities))
    assert asked == [best, best]
    assert isinstance(with_map, Explanation)
    assert with_map.label == served.class_names[best]
    assert with_map.heat.startswith("data:image/png;base64,")
    assert (without.heat, without.reason) == (None, "not today")
    assert "empty" in _run(served, lambda answering: answering.explain(b""))


def test_large_images_are_decoded_one_at_a_time(
    served: Served, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, inside, most = threading.Lock(), 0, 0

    def slow(image: Tensor) -> Tensor:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.03)
        with lock:
            inside -= 1
        return served.resize(image)

    monkeypatch.setattr("finetune.serving.answering._MAX_DECODERS", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for large, expected in ((10**9, 4), (10, 1)):
        most = 0
        monkeypatch.setattr(finetune.serving.answering, "_LARGE_PIXELS", large)
        slowed = replace(served, resize=slow)
        _run(slowed, lambda answering: answering.predict(pictures[:8]))
        assert most == expected
