"""Whether an exported file answers like the model."""

import json
import subprocess

import numpy as np
import pytest
import torch

from finetune.errors import DataError, ExportError
from finetune.exports import gate
from finetune.exports.bundle import load_model
from finetune.exports.gate import check_file
from finetune.models.answers import decide


@pytest.fixture
def model(bundle_of):
    return load_model(bundle_of("multiclass"))


@pytest.fixture(scope="module")
def file(export_of):
    # ONNX, because a process that opens it need not import torch.
    return export_of(".onnx")[1]


def answers_of(model, photos):
    """Give what the model says of each photo, and the classes that make it right on all."""
    numbers = torch.tensor([list(a.probabilities.values()) for a in model.predict(photos)])
    return numbers, numbers.argmax(1)


def check(file, model, photos, targets=None, **changes):
    settings = {"tolerance": 1e-4, "max_accuracy_drop": 0.01, "is_timed": False, **changes}
    targets = answers_of(model, photos)[1] if targets is None else targets
    return check_file(file, model, photos, targets, **settings)


@pytest.fixture
def says(monkeypatch, tmp_path):
    """Return a function that makes the file answer with given numbers; gives a file."""

    def say(numbers):
        answer = lambda *args, **kwargs: (numbers.double(), [])  # noqa: E731
        monkeypatch.setattr(gate, "_ask_file", answer)
        (tmp_path / "model.onnx").write_bytes(b"x" * 1000)
        return tmp_path / "model.onnx"

    return say


def test_a_faithful_file_passes_and_all_is_written_down(model, file, photos):
    verdict = check(file, model, photos, is_timed=True)
    written = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert written["images"] == written["same_labels"] == len(photos)
    assert 0 <= written["largest_difference"] <= 1e-5
    assert written["tolerance"] == 1e-4
    assert written["worst_image"] in map(str, photos)
    assert written["accuracy_model"] == written["accuracy_file"] == 1
    assert written["megabytes"] == pytest.approx(file.stat().st_size / 1e6)
    for key in ("latency_ms_model", "latency_ms_file"):
        assert list(written[key]) == ["1", "32"]
        assert 0 < written[key]["1"] < written[key]["32"]
    assert len(written) == 10


@pytest.mark.parametrize("what", ["temperature", "weights", "classes"])
def test_another_model_is_refused_and_the_worst_image_is_named(
    model, file, photos, export_of, monkeypatch, what
):
    faithful, _ = answers_of(model, photos)
    if what == "temperature":
        other = model.description.model_copy(update={"temperature": 0.55})
        model.description = other
    else:
        linear = model.classifier.head.linear
        with torch.no_grad():
            if what == "weights":
                linear.weight[0] += 0.02
            else:
                linear.weight.copy_(linear.weight.flip(0))
                linear.bias.copy_(linear.bias.flip(0))
    changed, _ = answers_of(model, photos)
    differences = (faithful - changed).abs().amax(1)
    worst = photos[int(differences.argmax())]
    with pytest.raises(ExportError, match="does not answer like the model") as caught:
        check(file, model, photos)
    message = str(caught.value)
    assert message.endswith(f"Most on {worst}.")
    assert f"differ by up to {differences.max():.2g}, 0.0001 is allowed" in message


def test_the_worst_image_of_a_verdict(model, photos, says):
    numbers, _ = answers_of(model, photos)
    said = numbers + 0.001
    said[3, 1] += 0.02
    verdict = check(says(said), model, photos, tolerance=0.05, max_accuracy_drop=1)
    assert verdict.largest_difference == pytest.approx(0.021, abs=1e-6)
    assert verdict.worst_image == str(photos[3])
    with pytest.raises(ExportError, match=rf"up to 0\.021, 0\.02 is allowed\. Most on {photos[3]}"):
        check(says(said), model, photos, tolerance=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tolerance", [1e-4, None])
def test_what_is_no_number_is_refused_at_any_tolerance(model, photos, says, value, tolerance):
    numbers, _ = answers_of(model, photos)
    numbers[2, 1] = value
    with pytest.raises(ExportError, match=rf"does not answer like the model.*{photos[2].name}"):
        check(says(numbers), model, photos, tolerance=tolerance)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda numbers: numbers[:, :2],
        lambda numbers: numbers[:, :1],  # would broadcast
        lambda numbers: numbers[:1],
        lambda numbers: numbers[0],
    ],
    ids=["fewer classes", "one number", "fewer images", "no batch"],
)
def test_another_shape_is_refused(model, photos, says, wrong):
    numbers, _ = answers_of(model, photos)
    with pytest.raises(ExportError, match="its answers have the shape"):
        check(says(wrong(numbers)), model, photos)


def test_a_drop_of_accuracy_is_refused(model, photos, says):
    numbers, targets = answers_of(model, photos)
    said = numbers.clone()
    said[1] = said[1].roll(1)  # one of five is wrong now
    assert int((said.argmax(1) != targets).sum()) == 1
    message = r"right on 80\.0% instead of 100\.0% of 5 images.*max_accuracy_drop=0\.19"
    with pytest.raises(ExportError, match=rf"{message}\. .*differ most on {photos[1]}"):
        check(says(said), model, photos, tolerance=None, max_accuracy_drop=0.19)
    verdict = check(says(said), model, photos, tolerance=None, max_accuracy_drop=0.2)
    assert (verdict.accuracy_model, verdict.accuracy_file) == (1, 0.8)
    assert verdict.same_labels == 4
    # A file that is better than the model has lost nothing.
    better = check(says(said), model, photos, said.argmax(1), tolerance=None, max_accuracy_drop=0)
    assert (better.accuracy_model, better.accuracy_file) == (0.8, 1)


def test_labels_are_compared_as_sets(bundle_of, photos, says):
    model = load_model(bundle_of("multilabel"))
    numbers, _ = answers_of(model, photos)
    targets = decide(numbers, "multilabel").float()
    said = numbers.clone()
    said[0, 2] = 1 - said[0, 2]
    verdict = check(says(said), model, photos, targets, tolerance=None, max_accuracy_drop=1)
    assert verdict.same_labels == 4
    assert (verdict.accuracy_model, verdict.accuracy_file) == (1, 0.8)


def test_what_the_model_said_just_now_is_not_asked_again(model, photos, says, monkeypatch):
    numbers, targets = answers_of(model, photos)
    known = dict(zip(photos, numbers, strict=True))
    asked = []
    probabilities = model.probabilities
    monkeypatch.setattr(model, "probabilities", lambda r: asked.append(r) or probabilities(r))
    check(says(numbers), model, photos, targets, known=known)
    assert asked == []
    del known[photos[1]]
    check(says(numbers), model, photos, targets, known=known)
    assert len(asked) == 1
    # It is what counts, though.
    with pytest.raises(ExportError, match="does not answer like the model"):
        check(says(numbers), model, photos, targets, known={photos[1]: numbers[1].flip(0)})


def test_features_are_compared_over_the_largest(model, photos, says):
    pixels = [torch.from_numpy(gate.read_pixels(photo, 1)) for photo in photos]
    features = torch.cat([model.features(model.preprocess.resize(image)) for image in pixels])
    said = features.clone()
    said[4, 0] += 0.5 * features.abs().max()
    targets = torch.zeros(len(photos), dtype=torch.int64)
    changes = {"gives_features": True, "tolerance": 0.6}
    verdict = check(says(said), model, photos, targets, **changes)
    assert verdict.largest_difference == pytest.approx(0.5, abs=1e-5)
    assert verdict.worst_image == str(photos[4])
    assert verdict.same_labels is verdict.accuracy_model is verdict.accuracy_file is None


def test_a_file_that_fails_gives_one_line(model, photos, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(ExportError, match=r"The exported file fails: .*cannot be opened") as caught:
        check(tmp_path / "model.onnx", model, photos)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("returncode", "stderr", "said"),
    [
        (-11, "", "status -11"),
        (1, "Traceback\n  File x\nRuntimeError: boom\n", "RuntimeError: boom"),
    ],
)
def test_a_process_that_dies_gives_one_line(
    model, photos, tmp_path, monkeypatch, returncode, stderr, said
):
    done = subprocess.CompletedProcess([], returncode, "", stderr)
    monkeypatch.setattr(gate.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(ExportError, match=f"^The exported file fails: {said}$"):
        check(tmp_path / "model.onnx", model, photos)


def test_an_image_that_is_broken_since_is_named(model, photos, says, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    numbers = torch.from_numpy(np.full((1, 5), 0.2))
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        check(says(numbers), model, [tmp_path / "broken.png"], torch.tensor([0]))
