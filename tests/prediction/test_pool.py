import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from finetune.errors import DataError, FinetuneError
from finetune.prediction import pool
from finetune.prediction.pool import Predictor, predict_in_processes
from finetune.prediction.predict import Prediction


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import torch once: a spawned process takes seconds. The tests of the command do spawn."""
    multiprocessing.set_forkserver_preload(["finetune.prediction.predict"])
    monkeypatch.setattr(pool, "_START_METHOD", "forkserver")


def answer(path: Path, number: int, size: int) -> Prediction:
    """Say which process answered, and in a batch of how many."""
    return Prediction(path, f"{number}", 0.5, (float(size), float(torch.get_num_threads())))


def echo(
    number: int, batch_size: int, ahead: int, paths: Iterable[Path]
) -> Generator[Prediction, None, None]:
    """Read ahead as a loader does, and act on the names of the files."""
    remaining = iter(paths)
    batches = iter(lambda: list(itertools.islice(remaining, batch_size)), [])
    waiting = list(itertools.islice(batches, ahead))
    while waiting:
        batch = waiting.pop(0)
        waiting += itertools.islice(batches, 1)
        for path in batch:
            match path.name:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "refuse":
                    raise DataError("refused")
                case "break":
                    raise KeyError("broken")
            yield answer(path, number, len(batch))


def open_echo(batch_size: int, ahead: int, number: int) -> Predictor:
    return partial(echo, number, batch_size, ahead)


def refuse_to_open(number: int) -> Predictor:
    raise DataError(f"no model for {number}")


def predict(
    paths: Iterable[Path],
    *,
    processes: int = 2,
    batch_size: int = 3,
    ahead: int = 2,
    open_predictor: Callable[[int], Predictor] | None = None,
) -> Generator[Prediction, None, None]:
    return predict_in_processes(
        paths,
        open_predictor=open_predictor or partial(open_echo, batch_size, ahead),
        processes=processes,
        batch_size=batch_size,
        ahead=ahead + 1,
        threads=1,
    )


def no_child_is_left() -> bool:
    return not torch.multiprocessing.active_children()


def names(count: int) -> list[Path]:
    return [Path(f"{index}.png") for index in range(count)]


def test_rows_come_in_order_from_batches_in_turn() -> None:
    rows = list(predict(names(20), processes=3))
    expected = [
        Prediction(path, f"{index // 3 % 3}", 0.5, (2.0 if index >= 18 else 3.0, 1.0))
        for index, path in enumerate(names(20))
    ]
    assert rows == expected
    assert no_child_is_left()


def test_more_processes_than_batches_are_not_started() -> None:
    assert len(list(predict(names(2), processes=4))) == 2
    assert list(predict([], processes=4)) == []


def test_long_names_and_slow_readers_block_nobody() -> None:
    # More than a pipe holds, both ways, and nothing is taken for a while.
    paths = [Path("x" * 4000) / f"{index}" for index in range(240)]
    rows = predict(paths, batch_size=30, ahead=3)
    first = next(rows)
    time.sleep(0.5)
    assert [row.path for row in (first, *rows)] == paths


def test_paths_are_read_as_needed() -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        for index in itertools.count():
            taken += 1
            yield Path(f"{index}")

    rows = predict(endless())
    assert taken == 0
    assert [row.path.name for row in itertools.islice(rows, 8)] == [str(i) for i in range(8)]
    assert taken <= 8 + 3 * 2 * 3
    rows.close()
    assert no_child_is_left()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("die", FinetuneError, "process that runs the model died by signal 9.*fewer processes"),
        ("refuse", DataError, "^refused$"),
        ("break", RuntimeError, "KeyError: 'broken'"),
    ],
)
def test_what_ends_a_process_ends_all_with_its_reason(
    name: str, error: type[Exception], message: str
) -> None:
    paths = [*names(10), Path(name), *names(200)]
    with pytest.raises(error, match=message):
        list(predict(paths))
    assert no_child_is_left()


def test_a_model_that_cannot_be_opened_says_why() -> None:
    with pytest.raises(DataError, match="no model for 0"):
        list(predict(names(40), open_predictor=refuse_to_open))
    assert no_child_is_left()


def test_paths_that_end_in_an_error_end_the_processes() -> None:
    def paths() -> Iterator[Path]:
        yield from names(5)
        raise DataError("line 6 is none")

    with pytest.raises(DataError, match="line 6 is none"):
        list(predict(paths()))
    assert no_child_is_left()
