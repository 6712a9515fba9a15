"""An exported file on raw files, as a program that deploys it asks."""

import json
import subprocess
import sys

import numpy as np
import pytest

from finetune.exports import answering
from finetune.exports.answering import REPEATS, latencies, main, read_pixels


def test_pixels_are_decoded_and_nothing_else(photos):
    for photo, (height, width) in zip(
        photos, [(40, 40), (90, 31), (33, 200), (25, 20), (48, 64)], strict=True
    ):
        pixels = read_pixels(photo, 1)
        assert (pixels.shape, pixels.dtype) == ((1, 3, height, width), np.uint8)
        assert pixels.flags.c_contiguous


def test_latencies_are_medians_by_batch_without_the_first(photos, monkeypatch):
    clock = iter([0.0, 1, 10, 13, 20, 22, 30, 31, 40, 41, 50, 54, 60, 66])
    monkeypatch.setattr(answering.time, "perf_counter", lambda: next(clock))
    sizes = []
    found = latencies(lambda batch: sizes.append(len(batch)), read_pixels(photos[0], 1))
    assert sizes == [1] * (REPEATS[1] + 1) + [32] * (REPEATS[32] + 1)
    assert found == [1, 5]


@pytest.mark.parametrize("is_timed", [False, True])
def test_what_is_asked_is_answered_in_order(export_of, photos, tmp_path, is_timed):
    model, file = export_of(".onnx")
    asked = {
        "file": str(file),
        "images": [*map(str, photos)],
        "max_megapixels": 1,
        "is_timed": is_timed,
    }
    (tmp_path / "request.json").write_text(json.dumps(asked))
    main(tmp_path / "request.json", tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz", allow_pickle=False) as found:
        assert len(found["latencies"]) == (len(REPEATS) if is_timed else 0)
        numbers = found["numbers"]
    expected = [list(answer.probabilities.values()) for answer in model.predict(photos)]
    assert np.abs(numbers - np.array(expected)).max() <= 1e-4


def test_a_failure_is_one_line_and_status_1(tmp_path):
    asked = {"file": "gone.onnx", "images": [], "max_megapixels": 1, "is_timed": False}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    words = ["-m", "finetune.exports.answering", tmp_path / "request.json", tmp_path / "a.npz"]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "gone.onnx: no such file.\n")
    assert not (tmp_path / "a.npz").exists()
