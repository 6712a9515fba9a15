import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.data.decode import decode_image
from finetune.errors import DataError, ModelError
from finetune.exports.bundle import (
    add_metrics,
    load_model,
    save_bundle,
    set_evidence,
    sha256_of,
)
from finetune.exports.description import PredictionSets

CLASS_NAMES = ["ant", "bee", "wasp, common"]


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle()[0]


@pytest.fixture
def edited(bundle, tmp_path):
    """Return a function that makes a copy of the bundle with another `model.json`."""

    def edit(change, weights=None):
        data = (bundle / "model.safetensors").read_bytes() if weights is None else weights
        (tmp_path / "model.safetensors").write_bytes(data)
        description = json.loads((bundle / "model.json").read_text())
        description["weights_sha256"] = sha256_of(tmp_path / "model.safetensors")
        change(description)
        (tmp_path / "model.json").write_text(json.dumps(description))
        return tmp_path

    return edit


def pixels_of(path):
    return torch.from_numpy(decode_image(path)).permute(2, 0, 1)


@pytest.mark.parametrize("head", ["linear", "mlp", "cosine"])
@pytest.mark.parametrize("backbone", ["nano", "resnet18"])
def test_a_loaded_model_answers_bitwise_like_the_saved_one(make_bundle, photos, backbone, head):
    folder, classifier, preprocess = make_bundle(backbone, head)
    model = load_model(folder)
    classifier.eval().to(memory_format=torch.channels_last)
    for path in photos:
        with torch.inference_mode():
            images = preprocess(pixels_of(path)).contiguous(memory_format=torch.channels_last)
            expected = torch.softmax(classifier(images), dim=1)
        answer = model.probabilities(model.preprocess.resize(pixels_of(path)))
        assert torch.equal(answer, expected)
    assert model.class_names == CLASS_NAMES
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("resize_mode", ["crop", "pad", "squash"])
def test_the_preprocessing_travels_with_the_model(make_bundle, resize_mode):
    folder, _, preprocess = make_bundle(resize_mode=resize_mode)
    assert load_model(folder).preprocess.settings() == preprocess.settings()
    assert preprocess.settings()["resize_mode"] == resize_mode


def test_shared_tensors_survive(make_bundle, photos):
    # coat's blocks share their position encodings; safetensors refuses shared memory.
    folder, classifier, preprocess = make_bundle("coat_tiny", image_size_px=64)
    with torch.inference_mode():
        expected = torch.softmax(classifier.eval()(preprocess(pixels_of(photos[0]))), dim=1)
    (answer,) = load_model(folder).predict(photos[:1])
    assert list(answer.probabilities.values()) == pytest.approx(expected[0].tolist(), abs=1e-6)


def test_one_answer_for_every_form_of_an_image(bundle, photos):
    model = load_model(bundle)
    for path in photos:
        array = decode_image(path)
        with PIL.Image.open(path) as image:
            image.load()
            forms = [path, str(path), image, array, pixels_of(path), np.asfortranarray(array)]
        answers = [model.predict([form])[0] for form in forms]
        assert all(answer == answers[0] for answer in answers)
    first = answers[0]
    assert first.labels == (first.label,)
    assert list(first.probabilities) == CLASS_NAMES
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert first.probability == max(first.probabilities.values())
    assert first.probabilities[first.label] == first.probability


def test_several_labels_have_sigmoids_and_a_set_for_an_answer(make_bundle, photos):
    model = load_model(make_bundle(task="multilabel")[0])
    assert model.description.task == "multilabel"
    images = torch.cat([model.preprocess(pixels_of(path)) for path in photos])
    with torch.inference_mode():
        # Each label is given to about half of the images.
        model.classifier.head.linear.bias -= model.classifier(images).median(0).values
        numbers = model.classifier(images).sigmoid()
    answers = model.predict(photos)
    for expected, answer in zip(numbers, answers, strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        given = [name for name, p in answer.probabilities.items() if p >= 0.5]
        assert list(answer.labels) == given
        assert answer.label == "|".join(given)
        values = torch.tensor(list(answer.probabilities.values()))
        joint = torch.maximum(values, 1 - values).prod().item()
        assert answer.probability == pytest.approx(joint)
    assert len({answer.label for answer in answers}) > 1


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_temperature_divides_the_logits(make_bundle, photos, task):
    as_trained = load_model(make_bundle(task=task)[0])
    warm = load_model(make_bundle(task=task, temperature=2.0)[0])
    assert (as_trained.description.temperature, warm.description.temperature) == (1.0, 2.0)
    images = torch.cat([as_trained.preprocess(pixels_of(path)) for path in photos])
    with torch.inference_mode():
        logits = as_trained.classifier(images) / 2
    expected = logits.softmax(1) if task == "multiclass" else logits.sigmoid()
    for row, answer in zip(expected.tolist(), warm.predict(photos), strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(row, abs=1e-5)


def test_features_are_what_the_head_reads(bundle, photos):
    model = load_model(bundle)
    resized = torch.cat([model.preprocess.resize(pixels_of(path)) for path in photos])
    features = model.features(resized)
    assert (features.shape, features.dtype) == ((len(photos), 192), torch.float32)
    logits = model.classifier.head(features)
    assert torch.allclose(logits.softmax(1), model.probabilities(resized), atol=1e-6)
    assert len(features.unique(dim=0)) == len(photos)


def test_batches_do_not_change_the_answers(bundle, photos):
    model = load_model(bundle)
    one = model.predict(photos, batch_size=1)
    assert len({answer.probability for answer in one}) == len(photos)
    for batch_size in (2, 3, 100):
        for left, right in zip(one, model.predict(photos, batch_size=batch_size), strict=True):
            assert left.label == right.label
            assert left.probability == pytest.approx(right.probability, abs=1e-6)
    assert model.predict([]) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(3, 8, 0, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=lambda image: f"{type(image).__name__} {list(image.shape)} {image.dtype}",
)
def test_another_shape_or_type_is_refused(bundle, image):
    with pytest.raises(DataError, match=r"predict: got an? (array|tensor) .*expected uint8"):
        load_model(bundle).predict([image])


def test_a_single_image_in_place_of_a_list_is_refused(bundle, photos):
    model = load_model(bundle)
    for image in (photos[0], str(photos[0]), decode_image(photos[0]), pixels_of(photos[0])):
        with pytest.raises(DataError, match="expected a list of images"):
            model.predict(image)


def test_an_unreadable_file_is_named(bundle, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    PIL.Image.new("RGB", (1001, 1000)).save(tmp_path / "huge.png")  # the bundle allows 1 megapixel
    for name in ("text.png", "huge.png", "gone.png"):
        with pytest.raises(DataError, match=rf"{name} cannot be read: "):
            load_model(bundle).predict([tmp_path / name])


def test_metrics_are_added_to_the_description(make_bundle):
    folder, _, _ = make_bundle()
    before = json.loads((folder / "model.json").read_text())
    add_metrics(folder, {"val": {"accuracy": 0.5}})
    after = json.loads((folder / "model.json").read_text())
    assert after == {**before, "metrics": {"val": {"accuracy": 0.5}}}
    assert load_model(folder).description.metrics == {"val": {"accuracy": 0.5}}


SETS = PredictionSets(coverage=0.9, limit=0.7, penalty=0.0, free_ranks=1, images=50)


def test_what_was_calibrated_is_written_whole_and_used(make_bundle, photos):
    folder, _, _ = make_bundle(temperature=1.0)
    before = json.loads((folder / "model.json").read_text())
    plain = load_model(folder).predict(photos)
    assert {(answer.abstained, answer.prediction_set) for answer in plain} == {(None, None)}
    middle = sorted(answer.probability for answer in plain)[2]
    set_evidence(folder, temperature=1.0, sets=SETS, abstain_below=middle)
    written = {"sets": SETS.model_dump(), "abstain_below": middle}
    assert json.loads((folder / "model.json").read_text()) == {**before, **written}
    answers = load_model(folder).predict(photos)
    assert [answer.probabilities for answer in answers] == [a.probabilities for a in plain]
    # One whose probability is just that of the threshold is not too improbable.
    assert [answer.abstained for answer in answers] == [a.probability < middle for a in plain]
    assert sum(answer.abstained for answer in answers) == 2
    for answer in answers:
        shares = sorted(answer.probabilities.values(), reverse=True)
        best = sorted(CLASS_NAMES, key=lambda name: -answer.probabilities[name])
        count = sum(sum(shares[:rank]) <= 0.7 for rank in range(3))
        assert answer.prediction_set == tuple(best[:count])
    add_metrics(folder, {"val": {}})
    set_evidence(folder, temperature=2.0, sets=None, abstain_below=None)
    description = load_model(folder).description
    assert (description.temperature, description.sets, description.abstain_below) == (2, None, None)
    assert description.metrics == {"val": {}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"abstain_below": 1.5}, "abstain_below"),
        ({"sets": SETS.model_copy(update={"limit": float("nan")})}, "sets"),
    ],
)
def test_a_calibration_that_failed_is_not_written(make_bundle, changes, key):
    folder, _, _ = make_bundle()
    before = (folder / "model.json").read_bytes()
    with pytest.raises(ModelError, match=key):
        set_evidence(folder, **{"temperature": 1.0, "sets": None, "abstain_below": None, **changes})
    assert (folder / "model.json").read_bytes() == before


def test_several_labels_can_be_abstained_but_have_no_sets(make_bundle, photos):
    folder, _, _ = make_bundle(task="multilabel")
    set_evidence(folder, temperature=1.0, sets=None, abstain_below=1.0)
    answers = load_model(folder).predict(photos)
    assert {(answer.abstained, answer.prediction_set) for answer in answers} == {(True, None)}
    with pytest.raises(ModelError, match=r"sets: .*one class per image"):
        set_evidence(folder, temperature=1.0, sets=SETS, abstain_below=None)


def test_a_missing_file_is_said_to_be_missing(bundle, tmp_path):
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        load_model(bundle / "model.json")
    (tmp_path / "model.json").write_bytes((bundle / "model.json").read_bytes())
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_model(tmp_path)


def test_weights_of_another_model_are_refused(bundle, edited):
    data = bytearray((bundle / "model.safetensors").read_bytes())
    data[-1] ^= 1
    folder = edited(
        lambda d: d.update(weights_sha256=sha256_of(bundle / "model.safetensors")), data
    )
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_model(folder)


def put(path, value):
    """Return a change of the description: the value at a dotted path."""

    def change(description):
        *parents, last = path.split(".")
        for parent in parents:
            description = description[parent]
        description[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("backbone.name", "resnet999"),
        put("backbone.name", "resnet18"),
        put("backbone.name", "hf-hub:somebody/something"),
        put("backbone.name", "../../nano"),
        put("head.name", "mlp"),
        put("head.arguments", {"unknown": 1}),
        put("head.arguments", {"dropout": 2.0}),
        put("head.arguments", {"dropout": float("nan")}),
        put("class_names", ["one", "more", "than", "there", "are"]),
        put("preprocessing", {}),
        put("preprocessing._target_", "os.system"),
        put("preprocessing.colour_of_the_wall", "grey"),
        put("preprocessing.image_size_px", "big"),
        put("preprocessing.image_size_px", float("inf")),
        put("preprocessing.mean", ["a", "b", "c"]),
        put("preprocessing.mean", None),
        put("preprocessing.std", [0, 0, 0]),
        put("preprocessing.crop_fraction", float("nan")),
        put("preprocessing.resize_mode", "evil"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(edited, change):
    with pytest.raises(ModelError):
        load_model(edited(change))


def test_a_description_is_checked_before_anything_is_built(edited):
    with pytest.raises(ModelError, match=r"model\.json is no model description: head\._target_"):
        load_model(edited(put("head._target_", "os.system")))


def test_weights_that_do_not_fit_are_refused(bundle, edited, tmp_path):
    state = load_file(bundle / "model.safetensors")
    save_file({**state, "more": torch.zeros(3)}, tmp_path / "other")
    contents = [(tmp_path / "other").read_bytes(), b"", b"no safetensors"]
    for data in contents:
        with pytest.raises(ModelError, match="the bundle does not fit together"):
            load_model(edited(lambda description: None, data))


def test_a_save_that_fails_leaves_the_old_bundle(make_bundle, monkeypatch):
    folder, classifier, preprocess = make_bundle()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finetune.exports.bundle.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_bundle(
            folder,
            classifier=classifier,
            preprocess=preprocess,
            backbone_name="nano",
            head_name="linear",
            head_arguments={},
            class_names=["other", "names", "here"],
            task="multiclass",
            max_megapixels=1,
            versions={},
            command="",
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


FRESH = """
import sys
from finetune.exports.bundle import load_model
(answer,) = load_model(sys.argv[1]).predict([sys.argv[2]])
print(answer.label, answer.probability, sep="|")
heavy = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "albumentations"}
print(sorted(heavy & set(sys.modules)))
"""


def test_a_fresh_process_predicts_without_lightning(bundle, photos):
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(bundle), str(photos[1])],
        capture_output=True,
        text=True,
        check=True,
    )
    answer, imported = result.stdout.splitlines()
    (expected,) = load_model(bundle).predict([photos[1]])
    assert answer == f"{expected.label}|{expected.probability}"
    assert imported == "[]"
