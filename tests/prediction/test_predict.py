import itertools
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from finetune.errors import ConfigError, FinetuneError
from finetune.models.sets import read_sets
from finetune.prediction.predict import Prediction, predict_images

CLASSES = ("red", "green", "blue")
WORKERS = min(2, os.cpu_count() or 1)


def resize(image: Tensor) -> Tensor:
    return functional.interpolate(image[None].float(), size=(8, 8), mode="area")


def colour_model(images: Tensor) -> Tensor:
    """The brightest channel wins."""
    return (images.mean((2, 3)) / 50).softmax(1)


def predict(paths: list[Path], **changes: object) -> list[Prediction]:
    arguments: dict[str, object] = {
        "model": colour_model,
        "preprocess_resize": resize,
        "class_names": CLASSES,
        "task": "multiclass",
        "batch_size": 4,
        "workers": 0,
    }
    return list(predict_images(paths, **{**arguments, **changes}))  # type: ignore[arg-type]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Eleven images of different sizes, in no alphabetical order."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{(7 * index) % 11}.png" for index in range(11)]
    for index, path in enumerate(paths):
        pixels = rng.integers(0, 200, (9 + index, 20 - index, 3), dtype=np.uint8)
        pixels[..., index % 3] += 55
        Image.fromarray(pixels).save(path)
    return paths


def test_every_file_gets_its_prediction_in_order(images: list[Path]) -> None:
    predictions = predict(images)
    assert [prediction.path for prediction in predictions] == images
    assert [prediction.label for prediction in predictions] == [
        CLASSES[index % 3] for index in range(11)
    ]
    for prediction in predictions:
        assert prediction.error is None
        assert prediction.probability == max(prediction.probabilities)
        assert sum(prediction.probabilities) == pytest.approx(1)


def test_several_labels_are_joined_and_none_is_an_answer_too(images: list[Path]) -> None:
    def model(batch: Tensor) -> Tensor:
        return torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.2, 0.3]])

    both, none = predict(images[:2], model=model, task="multilabel")
    assert both.label == "red|blue"
    assert both.probability == pytest.approx(0.9 * 0.9 * 0.5)
    assert both.probabilities == pytest.approx((0.9, 0.1, 0.5))
    assert none.label == ""
    assert none.error is None
    assert none.probability == pytest.approx(0.9 * 0.8 * 0.7)


def test_sets_come_with_their_images_and_never_with_an_error(
    images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    sets = partial(read_sets, limit=0.5, penalty=0, free_ranks=1)

    def model(batch: Tensor) -> Tensor:
        rows = [[0.3, 0.1, 0.6], [0.1, 0.8, 0.1], [torch.nan, 0.5, 0.5]]
        return torch.tensor(rows[: len(batch)])

    paths = [images[0], tmp_path / "text.jpg", *images[1:3]]
    first, unread, second, broken = predict(paths, model=model, sets=sets)
    assert (first.label, first.prediction_set) == ("blue", ("blue",))
    assert (second.label, second.prediction_set) == ("green", ("green",))
    assert (unread.prediction_set, broken.prediction_set) == (None, None)
    assert broken.error
    wider = partial(read_sets, limit=0.75, penalty=0, free_ranks=1)
    assert predict(paths, model=model, sets=wider)[0].prediction_set == ("blue", "red")
    assert predict(paths, model=model)[0].prediction_set is None


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_batch_size_does_not_change_the_answers(images: list[Path], batch_size: int) -> None:
    for one, other in zip(predict(images), predict(images, batch_size=batch_size), strict=True):
        assert one.path == other.path
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_workers_do_not_change_the_answers(images: list[Path], tmp_path: Path) -> None:
    images.insert(5, tmp_path / "missing.png")
    assert predict(images, batch_size=2, workers=WORKERS) == predict(images, batch_size=2)


def test_unreadable_files_are_named_and_the_others_go_on(
    images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(images[0].read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    names = ("text.jpg", "cut.png", "empty.png", "folder.png", "missing.png")
    broken = [tmp_path / name for name in names]
    paths = [path for pair in zip(broken, images, strict=False) for path in pair]
    predictions = predict(paths, batch_size=3)
    assert [prediction.path for prediction in predictions] == paths
    for bad, good in zip(predictions[::2], predictions[1::2], strict=True):
        assert bad.error
        assert "\n" not in bad.error
        assert (bad.label, bad.probability, bad.probabilities) == (None, None, ())
        assert good.error is None
    # A neighbour that cannot be read changes nothing.
    assert predictions[1::2] == predict(images[:5], batch_size=3)


def test_a_model_is_never_called_with_nothing(tmp_path: Path) -> None:
    def model(_: Tensor) -> Tensor:
        raise AssertionError("called")

    predictions = predict([tmp_path / "a.png"] * 5, batch_size=2, model=model)
    assert all(prediction.error for prediction in predictions)
    assert len(predictions) == 5
    assert predict([], model=model) == []


def test_large_images_are_refused_by_their_header(images: list[Path]) -> None:
    (prediction,) = predict(images[:1], max_megapixels=1e-5)
    assert "max_megapixels" in (prediction.error or "")


def test_a_name_that_is_not_utf8_is_read(images: list[Path], tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    try:
        path.write_bytes(images[0].read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (prediction,) = predict([path], workers=1)
    assert prediction.path == path
    assert prediction.label == "red"


@pytest.mark.parametrize("workers", [0, 1])
def test_endless_paths_are_read_as_needed(images: list[Path], workers: int) -> None:
    taken = 0

    def paths() -> Iterator[Path]:
        nonlocal taken
        for path in itertools.cycle(images):
            taken += 1
            yield path

    predictions = predict(images, workers=workers)
    endless = predict_images(
        paths(),
        model=colour_model,
        preprocess_resize=resize,
        class_names=CLASSES,
        task="multiclass",
        batch_size=4,
        workers=workers,
    )
    assert taken == 0
    assert list(itertools.islice(endless, 11)) == pytest.approx(predictions)
    assert 11 <= taken <= 4 * (3 + 2 * workers + 1)
    endless.close()


def test_workers_end_with_the_iterator(images: list[Path]) -> None:
    predictions = predict_images(
        itertools.cycle(images),
        model=colour_model,
        preprocess_resize=resize,
        class_names=CLASSES,
        task="multiclass",
        batch_size=1,
        workers=1,
    )
    next(predictions)
    (child,) = torch.multiprocessing.active_children()
    predictions.close()
    child.join(10)
    assert not child.is_alive()


def die(_: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_killed_worker_is_explained(images: list[Path]) -> None:
    with pytest.raises(FinetuneError, match=r"process that reads images died.*workers=0"):
        predict(images, workers=1, preprocess_resize=die)


def test_a_bug_in_a_worker_keeps_its_own_error(images: list[Path]) -> None:
    def buggy(_: Tensor) -> Tensor:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        predict(images, workers=1, preprocess_resize=buggy)


def test_workers_use_one_thread_each(images: list[Path]) -> None:
    def thread_count(_: Tensor) -> Tensor:
        return torch.full((1, 3, 1, 1), float(torch.get_num_threads()))

    seen = []

    def model(batch: Tensor) -> Tensor:
        seen.extend(batch[:, 0, 0, 0].tolist())
        return colour_model(batch)

    predict(images[:2], workers=1, preprocess_resize=thread_count, model=model)
    assert seen == [1, 1]


def test_gradients_are_off_for_the_model_only(images: list[Path]) -> None:
    seen = []

    def model(batch: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return colour_model(batch)

    for _ in predict_images(
        images,
        model=model,
        preprocess_resize=resize,
        class_names=CLASSES,
        task="multiclass",
        batch_size=4,
        workers=0,
    ):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert seen == [False, False, False]


def test_an_answer_that_is_not_finite_is_an_error_of_that_image(images: list[Path]) -> None:
    def model(batch: Tensor) -> Tensor:
        answer = colour_model(batch)
        answer[1, 2] = float("nan")
        return answer

    first, second, third = predict(images[:3], model=model)
    assert first.label == "red"
    assert second.label is None
    assert "NaN" in (second.error or "")
    assert third.label == "blue"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda batch: batch.mean((2, 3))[:, :2], r"shape \[4, 2\], expected \[4, 3\]"),
        (lambda batch: batch.mean((1, 2, 3)), r"shape \[4\]"),
        (lambda batch: colour_model(batch)[:1], r"shape \[1, 3\]"),
        (lambda batch: batch.mean((2, 3)), "not logits"),
        (lambda batch: -colour_model(batch), "not logits"),
    ],
)
def test_an_answer_that_is_no_probability_is_refused(
    images: list[Path], model: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict(images, model=model)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}])
def test_wrong_numbers_are_refused_at_once(wrong: dict[str, int]) -> None:
    arguments: dict[str, int] = {"batch_size": 4, "workers": 0, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        predict_images(
            [],
            model=colour_model,
            preprocess_resize=resize,
            class_names=CLASSES,
            task="multiclass",
            batch_size=arguments["batch_size"],
            workers=arguments["workers"],
        )


def test_images_of_several_sizes_are_answered_by_size(images: list[Path]) -> None:
    seen = []

    def as_it_is(image: Tensor) -> Tensor:
        return image[None]

    def model(batch: Tensor) -> Tensor:
        seen.append(batch.shape[0])
        return (batch.double().mean((2, 3)) / 50).softmax(1)

    paths = [images[0], images[1], images[0], images[2], images[1], images[0]]
    rows = predict(paths, preprocess_resize=as_it_is, model=model, batch_size=5)
    assert seen == [2, 2, 1, 1]
    alone = [predict([path], preprocess_resize=as_it_is, model=model)[0] for path in paths]
    for row, single in zip(rows, alone, strict=True):
        assert (row.path, row.label) == (single.path, single.label)
        assert row.probabilities == pytest.approx(single.probabilities)


def test_features_come_with_their_images(images: list[Path], tmp_path: Path) -> None:
    def model(batch: Tensor) -> tuple[Tensor, Tensor]:
        return colour_model(batch), batch.mean((2, 3))

    paths = [images[0], tmp_path / "missing.png", *images[1:4]]
    rows = predict(paths, model=model, batch_size=3)
    assert rows == predict(paths, batch_size=3)
    assert rows[1].features is None
    for row in (rows[0], *rows[2:]):
        assert row.features is not None
        assert row.features.dtype == np.float32
        assert CLASSES[int(row.features.argmax())] == row.label


def test_a_threshold_and_abstention_are_applied(images: list[Path], tmp_path: Path) -> None:
    def model(batch: Tensor) -> Tensor:
        return torch.tensor([[0.8, 0.2], [0.6, 0.4]])[: len(batch)]

    def rows(**changes: object) -> list[tuple[str | None, bool | None]]:
        found = predict(images[:2], model=model, class_names=("no", "yes"), **changes)
        return [(row.label, row.abstained) for row in found]

    assert rows() == [("no", None), ("no", None)]
    assert rows(threshold=0.3, abstain=0.7) == [("no", False), ("yes", True)]
    (missing,) = predict([tmp_path / "missing.png"], abstain=0.7)
    assert missing.abstained is None


def test_a_threshold_for_three_classes_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        predict_images(
            [],
            model=colour_model,
            preprocess_resize=resize,
            class_names=CLASSES,
            task="multiclass",
            batch_size=1,
            workers=0,
            threshold=0.5,
        )
