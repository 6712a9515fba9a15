"""What a prediction answers with, and how much at a time."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.commands.predictor import (
    choose_batch_size,
    choose_processes,
    open_answering,
    workers_of_each,
)
from finetune.errors import ConfigError
from finetune.exports.bundle import load_model

BUNDLE = Path("runs/flowers")


@given(st.integers(1, 64), st.none() | st.integers(0, 10**6), st.integers(1, 8))
def test_no_process_has_more_workers_than_batches(
    workers: int, batches: int | None, processes: int
) -> None:
    chosen = workers_of_each(workers, batches, processes)
    assert chosen <= workers
    if batches is None:
        assert chosen == workers
    else:
        assert chosen * processes < batches + processes or chosen == 0


@given(st.integers(16, 2048), st.integers(16, 2048))
def test_larger_images_never_come_in_larger_batches(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert 1 <= choose_batch_size(BUNDLE, large) <= choose_batch_size(BUNDLE, small) <= 64


def test_an_exported_file_gets_one_image_at_a_time_in_one_process() -> None:
    assert choose_batch_size(Path("model.onnx"), 32) == 1
    assert choose_processes(Path("model.onnx")) == 1


def test_views_and_features_are_asked_of_bundles_alone(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match=r"augment: got flip, but .* is an exported file"):
        open_answering(file, trust=False, augment="flip", features=False)
    with pytest.raises(ConfigError, match="output_features: got a file, but"):
        open_answering(file, trust=False, augment="none", features=True)


def test_features_come_with_the_probabilities_of_the_bundle(trained: Path) -> None:
    model = load_model(trained)
    answering = open_answering(trained, trust=False, augment="none", features=True)
    pixels = answering.resize(torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8))
    probabilities, features = answering.answer(pixels)
    torch.testing.assert_close(probabilities, model.probabilities(pixels))
    torch.testing.assert_close(features, model.features(pixels))
    assert features.shape == (1, answering.num_features)
