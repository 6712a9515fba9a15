import io

import pytest
import torch
from rich.console import Console

from finetune.commands import export
from finetune.commands.export import write_torchscript
from finetune.errors import ExportError
from finetune.exports.bundle import load_model
from finetune.exports.parity import compare
from finetune.exports.torchscript import save_torchscript


@pytest.fixture(scope="module")
def folder(make_bundle):
    return make_bundle()[0]


@pytest.fixture
def model(folder):
    return load_model(folder)


def test_labels_are_compared_as_sets(make_bundle, photos):
    model = load_model(make_bundle(task="multilabel")[0])
    given = model.predict(photos)

    def without_the_third(images):
        answer = faithful(model)(images).clone()
        answer[:, 2] = 0.49
        return answer

    parity = compare(without_the_third, model, photos, tolerance=1)
    same = sum("wasp, common" not in answer.labels for answer in given)
    assert parity.same_labels == same
    assert compare(faithful(model), model, photos, tolerance=1e-12).same_labels == len(photos)


def faithful(model):
    return lambda images: model.probabilities(model.preprocess.resize(images))


def perturbed(folder):
    """Load the model and move one of its weights."""
    other = load_model(folder)
    with torch.no_grad():
        other.classifier.head.linear.bias[0] += 0.01
    return other


def test_a_faithful_file_is_within_any_tolerance(model, photos):
    parity = compare(faithful(model), model, photos, tolerance=1e-12)
    assert parity.images == parity.same_labels == len(photos)
    assert parity.largest_difference == 0
    assert parity.to_dict() == {
        "images": len(photos),
        "same_labels": len(photos),
        "largest_difference": 0.0,
        "tolerance": 1e-12,
        "worst_image": photos[0].name,
    }


def test_the_worst_image_is_named(model, photos):
    seen = []

    def off_on_the_third(images):
        seen.append(images)
        answer = faithful(model)(images)
        return answer + 0.03 if len(seen) == 3 else answer + 0.01

    with pytest.raises(ExportError, match=rf"up to 0\.03, 0\.02 is allowed.*{photos[2].name}"):
        compare(off_on_the_third, model, photos, tolerance=0.02)
    assert [images.dtype for images in seen] == [torch.uint8] * len(photos)
    assert len({images.shape for images in seen}) == len(photos)  # raw, each of its own size

    seen.clear()
    parity = compare(off_on_the_third, model, photos, tolerance=0.04)
    assert parity.largest_difference == pytest.approx(0.03, abs=1e-6)
    assert parity.worst_image == photos[2].name


@pytest.mark.parametrize(
    "wrong",
    [
        lambda answer: answer.flip(1),
        lambda answer: answer * float("nan"),
        lambda answer: answer.log(),
        lambda answer: answer[:, :2],
        lambda answer: answer[:, :1],  # would broadcast
        lambda answer: answer[0],
    ],
    ids=["other order", "nan", "logits", "fewer classes", "one number", "no batch"],
)
def test_a_file_that_answers_otherwise_is_refused(model, photos, wrong):
    with pytest.raises(ExportError, match="does not answer like the model"):
        compare(lambda images: wrong(faithful(model)(images)), model, photos, tolerance=1e-4)


def test_a_file_that_fails_is_refused(model, photos):
    def failing(images):
        raise RuntimeError("Traceback of TorchScript\nRuntimeError: shape '[2, 8]' is invalid")

    with pytest.raises(ExportError, match=rf"fails on .*{photos[0].name}: .*is invalid"):
        compare(failing, model, photos, tolerance=1e-4)


def write(model, target, photos, tolerance=1e-4):
    console = Console(file=io.StringIO(), width=200)
    parity = write_torchscript(model, target, photos, tolerance=tolerance, console=console)
    return parity, console.file.getvalue()


def test_a_checked_file_is_kept_with_its_check(model, photos, tmp_path):
    parity, said = write(model, tmp_path / "model.ts", photos)
    assert parity.same_labels == len(photos)
    assert parity.largest_difference <= 1e-5
    assert f"{len(photos)} of {len(photos)}" in said
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model.ts", "model.ts.check.json"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_wrong_file_leaves_nothing_behind(model, folder, photos, tmp_path, monkeypatch, is_there):
    if is_there:
        write(model, tmp_path / "model.ts", photos)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2 * is_there

    def save_another(model, path):
        save_torchscript(perturbed(folder), path)

    monkeypatch.setattr(export, "save_torchscript", save_another)
    with pytest.raises(ExportError, match="does not answer like the model"):
        write(model, tmp_path / "model.ts", photos)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
