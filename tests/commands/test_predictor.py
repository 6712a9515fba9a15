"""What a prediction answers with, and how much at a time."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.commands.predictor import (
    check_sets,
    choose_abstain,
    choose_batch_size,
    choose_processes,
    open_answering,
    workers_of_each,
)
from finetune.errors import ConfigError
from finetune.exports.bundle import load_model, set_evidence
from finetune.exports.description import PredictionSets, read_description

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


SETS = PredictionSets(coverage=0.9, limit=0.5, penalty=0, free_ranks=1, images=20)


def test_auto_abstains_as_the_model_was_told_to(trained: Path) -> None:
    as_is = read_description(trained / "model.json")
    own = as_is.model_copy(update={"abstain_below": 0.75})
    none = as_is.model_copy(update={"abstain_below": None})
    assert choose_abstain("auto", own, threshold=None, augment="none") == 0.75
    assert choose_abstain("auto", none, threshold=None, augment="none") is None
    # It was found with neither of these.
    assert choose_abstain("auto", own, threshold=0.2, augment="none") is None
    assert choose_abstain("auto", own, threshold=None, augment="flip") is None
    for abstain in (None, 0.5):
        assert choose_abstain(abstain, own, threshold=0.2, augment="crops") == abstain


def test_sets_need_a_model_that_has_them(trained: Path) -> None:
    as_is = read_description(trained / "model.json").model_copy(update={"sets": SETS})
    check_sets(BUNDLE, as_is, "none")
    for changes, augment, message in (
        ({"task": "multilabel", "sets": None}, "none", "any number of labels.*Use sets=false"),
        ({"sets": None}, "none", "has no prediction sets.*evidence=full, or use sets=false"),
        ({}, "flip", "got true with augment=flip.*Use augment=none, or sets=false"),
    ):
        with pytest.raises(ConfigError, match=rf"^sets: .*{message}") as caught:
            check_sets(BUNDLE, as_is.model_copy(update=changes), augment)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_another_calibration_is_another_model(trained: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.safetensors"):
        shutil.copy(trained / name, tmp_path)
    seen = set()
    for temperature, sets, abstain_below in ((1.5, SETS, 0.9), (1.5, None, 0.9), (2.0, None, 0.9)):
        set_evidence(tmp_path, temperature=temperature, sets=sets, abstain_below=abstain_below)
        seen.add(open_answering(tmp_path, trust=False, augment="none", features=False).identity)
    assert len(seen) == 3
    # This one is a setting of its own.
    set_evidence(tmp_path, temperature=2.0, sets=None, abstain_below=0.5)
    seen.add(open_answering(tmp_path, trust=False, augment="none", features=False).identity)
    assert len(seen) == 3
