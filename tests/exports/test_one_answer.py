"""One image, one answer: whatever form it has, and whoever is asked."""

import numpy as np
import PIL.Image
import pytest
import torch

from finetune.data.decode import decode_image
from finetune.data.discover import Sample
from finetune.data.labelled_images import LabelledImages, Resized
from finetune.exports.answering import read_pixels
from finetune.exports.bundle import load_model
from finetune.exports.runtimes import open_file
from finetune.prediction.predict import predict_images

RAW = (".ts", ".onnx", ".pt2")
UPRIGHT = 274  # of EXIF
TURNS = {
    1: None,
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def model(bundle_of):
    return load_model(bundle_of("multiclass"))


@pytest.fixture(scope="module")
def files(export_of):
    """Everything that was exported of the model, opened."""
    return {suffix: open_file(export_of(suffix)[1], trust=True)[0] for suffix in RAW}


@pytest.fixture(scope="module")
def picture():
    """Return an image that no turn leaves as it was."""
    rng = np.random.default_rng(5)
    small = PIL.Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
    return small.resize((66, 43), PIL.Image.Resampling.BICUBIC)


def ask_everybody(path, model, files):
    """Give the probabilities of one file by everybody's name."""
    numbers = {}
    with PIL.Image.open(path) as image:
        image.load()
        array = decode_image(path)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        forms = {"path": path, "text": str(path), "PIL": image, "array": array, "tensor": tensor}
        for name, answer in zip(forms, model.predict(list(forms.values())), strict=True):
            numbers[name] = list(answer.probabilities.values())
    data = LabelledImages(
        path.parent,
        [Sample(path.name, model.class_names[0], "val")],
        torch.tensor([0]),
        transform=Resized(model.preprocess),
        seed=0,
        max_megapixels=1,
    )
    numbers["validation"] = model.probabilities(data[0, 0][0][None])[0].tolist()
    (prediction,) = predict_images(
        [path],
        model=model.probabilities,
        preprocess_resize=model.preprocess.resize,
        class_names=model.class_names,
        task="multiclass",
        batch_size=4,
        workers=0,
        max_megapixels=1,
    )
    numbers["predict"] = list(prediction.probabilities)
    pixels = read_pixels(path, 1)
    numbers |= {suffix: answer(pixels)[0].tolist() for suffix, answer in files.items()}
    return numbers


def assert_one(numbers, expected):
    assert len(numbers) == 10
    for name, found in numbers.items():
        assert np.abs(np.array(found) - np.array(expected)).max() <= 1e-4, name


def test_every_form_and_every_file(model, files, photos):
    answers = [ask_everybody(photo, model, files) for photo in photos]
    for numbers in answers:
        assert_one(numbers, numbers["path"])
    rows = np.array([numbers["path"] for numbers in answers])
    for first in range(len(rows)):
        for second in range(first):  # or one answer would be no surprise
            assert np.abs(rows[first] - rows[second]).max() > 1e-3


@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_of_exif(model, files, picture, tmp_path, orientation):
    turn = TURNS[orientation]
    exif = PIL.Image.Exif()
    exif[UPRIGHT] = orientation
    stored = picture if turn is None else picture.transpose(turn)
    stored.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "upright.png")
    (upright,) = model.predict([tmp_path / "upright.png"])
    expected = list(upright.probabilities.values())
    assert_one(ask_everybody(tmp_path / "turned.png", model, files), expected)
    if turn is not None:
        # Somebody who ignores the turn gives another answer.
        (ignored,) = model.predict([np.asarray(stored)])
        found = np.array(list(ignored.probabilities.values()))
        assert np.abs(found - np.array(expected)).max() > 1e-3


def test_sixteen_bits_of_grey(model, files, picture, tmp_path):
    grey = np.asarray(picture.convert("L"))
    PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    with PIL.Image.open(tmp_path / "16.png") as image:
        assert image.mode.startswith("I;16")
    (expected,) = model.predict([np.stack([grey] * 3, axis=-1)])
    numbers = ask_everybody(tmp_path / "16.png", model, files)
    assert_one(numbers, list(expected.probabilities.values()))


def test_a_palette_with_a_transparent_colour(model, files, picture, tmp_path):
    palette = picture.quantize(8)
    palette.save(tmp_path / "palette.png", transparency=2)
    rgb = np.asarray(palette.convert("RGB")).copy()
    rgb[np.asarray(palette) == 2] = 255  # flattened on white
    (expected,) = model.predict([rgb])
    numbers = ask_everybody(tmp_path / "palette.png", model, files)
    assert_one(numbers, list(expected.probabilities.values()))
