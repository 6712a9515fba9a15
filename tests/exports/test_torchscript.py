import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from finetune.data.decode import decode_image
from finetune.data.preprocess import Preprocess
from finetune.errors import ExportError
from finetune.exports.bundle import Model, load_model
from finetune.exports.description import Backbone, Description, Head
from finetune.exports.runtimes import open_file
from finetune.exports.torchscript import load_torchscript, save_torchscript
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\..*` is deprecated")

HEAD = {"dropout": 0.1, "scale": 16.0}

# What somebody has who deploys the file: torch, and nothing of ours.
FRESH = """
import json, sys, warnings
import torch
warnings.simplefilter("ignore")
pictures, answers = torch.load(sys.argv[1], weights_only=True), []
for path in sys.argv[2:]:
    extra = {"model.json": ""}
    module = torch.jit.load(path, _extra_files=extra)
    alone = [module(picture)[0].tolist() for picture in pictures]
    alone += [module(picture.unsqueeze(0))[0].tolist() for picture in pictures]
    pair = torch.stack([pictures[0], 255 - pictures[0], pictures[0]])
    names = json.loads(extra["model.json"])["class_names"]
    answers.append({"alone": alone, "batch": module(pair).tolist(), "names": names})
others = {"finetune", "timm", "lightning", "torchvision", "albumentations", "PIL", "cv2"}
print(json.dumps({"answers": answers, "imported": sorted(others & set(sys.modules))}))
"""


def pixels_of(path):
    return torch.from_numpy(decode_image(path)).permute(2, 0, 1)


def bare_model(backbone, in_features):
    """Wrap a backbone that no bundle could name."""
    torch.manual_seed(0)
    head = create_head("cosine", in_features=in_features, num_classes=3, **HEAD)
    preprocess = Preprocess(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    description = Description(
        format_version=1,
        task="multiclass",
        class_names=["a", "b", "c"],
        backbone=Backbone(name="nano", image_size_px=32),
        head=Head(name="cosine", arguments=HEAD),
        preprocessing=preprocess.settings(),
        max_megapixels=1,
        weights_sha256="0" * 64,
        metrics={},
        versions={},
        command="",
    )
    return Model(Classifier(backbone, head), preprocess, description)


def unscriptable_model():
    # `efficientvim_m1`, made smaller; torch.jit.script refuses its type of features.
    torch.manual_seed(0)
    backbone = timm.create_model(
        "efficientvim_m1",
        num_classes=0,
        embed_dim=(8, 16, 24),
        depths=(1, 1, 1),
        state_dim=(4, 4, 4),
    )
    model = bare_model(backbone, backbone.num_features)
    with pytest.raises(RuntimeError):
        torch.jit.script(model.classifier)
    return model


def assert_one_by_one(module, model, photos):
    for path in photos:
        pixels = pixels_of(path)
        (expected,) = model.probabilities(model.preprocess.resize(pixels))
        with torch.inference_mode():
            for answer in (module(pixels), module(pixels.unsqueeze(0))):
                assert answer.shape == (1, 3)
                assert answer.dtype == torch.float32
                assert (answer[0] - expected).abs().max() <= 1e-5
                if model.description.task == "multiclass":
                    assert answer.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("backbone", "head", "resize_mode", "task"),
    [
        ("nano", "linear", "crop", "multiclass"),
        ("nano", "mlp", "pad", "multiclass"),
        ("nano", "cosine", "squash", "multilabel"),
        ("resnet18", "linear", "crop", "multiclass"),
    ],
)
def test_the_file_answers_like_the_bundle(
    make_bundle, photos, tmp_path, backbone, head, resize_mode, task
):
    model = load_model(make_bundle(backbone, head, resize_mode=resize_mode, task=task)[0])
    before = model.predict(photos)
    save_torchscript(model, tmp_path / "model.ts")
    module, _ = load_torchscript(tmp_path / "model.ts")
    assert_one_by_one(module, model, photos)
    assert model.predict(photos) == before  # exporting leaves the model as it was


@pytest.mark.parametrize(
    ("task", "precision", "within"),
    [
        ("multiclass", "float32", 1e-4),
        ("multilabel", "float32", 1e-4),
        ("multiclass", "float16", 2e-2),
    ],
)
def test_temperature_and_precision_travel_with_it(export_of, assert_alike, task, precision, within):
    model, path = export_of(".ts", task, precision)
    answer, values = open_file(path, trust=True)
    assert_alike(answer, model, within=within)
    assert Description.model_validate(values) == model.description
    assert model.description.temperature != 1


def test_half_precision_is_half_the_size(export_of):
    whole, half = (export_of(".ts", precision=p)[1] for p in ("float32", "float16"))
    assert half.stat().st_size < 0.7 * whole.stat().st_size


def test_any_number_of_images_at_once(make_bundle, photos, tmp_path):
    model = load_model(make_bundle()[0])
    save_torchscript(model, tmp_path / "model.ts")
    module, _ = load_torchscript(tmp_path / "model.ts")
    pixels = pixels_of(photos[1])
    with torch.inference_mode():
        (alone,) = module(pixels)
        for count in (1, 2, 7):
            batch = torch.stack([pixels, *[255 - pixels] * (count - 1)])
            answers = module(batch)
            assert answers.shape == (count, 3)
            assert (answers[0] - alone).abs().max() <= 1e-5
            assert count == 1 or (answers[1] - alone).abs().max() > 1e-3


def test_a_network_that_cannot_be_scripted_is_traced(photos, tmp_path):
    model = unscriptable_model()
    save_torchscript(model, tmp_path / "model.ts")
    module, _ = load_torchscript(tmp_path / "model.ts")
    assert_one_by_one(module, model, photos)
    pixels = pixels_of(photos[0])
    with torch.inference_mode():
        answers = module(torch.stack([pixels, 255 - pixels, pixels]))
    assert (answers[0] - answers[2]).abs().max() <= 1e-6
    assert (answers[0] - answers[1]).abs().max() > 1e-6


class Stubborn(nn.Module):
    def forward(self, images, **_):  # torch cannot script keyword arguments
        if torch.jit.is_tracing():
            raise RuntimeError("this network asks what it is used for\nand more")
        return images.mean((2, 3))


def test_a_network_that_can_be_neither_is_an_error(tmp_path):
    model = bare_model(Stubborn(), 3)
    with pytest.raises(ExportError, match=r"neither scripted nor traced.*asks what it is used for"):
        save_torchscript(model, tmp_path / "model.ts")
    assert list(tmp_path.iterdir()) == []


def test_torch_alone_reads_the_files(make_bundle, photos, tmp_path):
    models = [load_model(make_bundle()[0]), unscriptable_model()]
    files = [tmp_path / "scripted.ts", tmp_path / "traced.ts"]
    for model, file in zip(models, files, strict=True):
        save_torchscript(model, file)
    pictures = [pixels_of(path).contiguous() for path in photos]
    torch.save(pictures, tmp_path / "pictures.pt")
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "pictures.pt"), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["imported"] == []
    for model, answer in zip(models, report["answers"], strict=True):
        expected = [
            model.probabilities(model.preprocess.resize(pixels))[0].tolist() for pixels in pictures
        ]
        for ours, theirs in zip([*expected, *expected], answer["alone"], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-5)
            assert theirs.index(max(theirs)) == ours.index(max(ours))
        assert answer["batch"][0] == pytest.approx(expected[0], abs=1e-5)
        assert answer["batch"][2] == pytest.approx(expected[0], abs=1e-5)
        assert answer["names"] == model.class_names


def test_the_description_lies_inside(export_of):
    model, path = export_of(".ts")
    extra = {"model.json": ""}
    torch.jit.load(str(path), _extra_files=extra)
    assert Description.model_validate_json(extra["model.json"]) == model.description
    assert load_torchscript(path)[1] == extra["model.json"].decode()
