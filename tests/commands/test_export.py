"""``finetune export``: a file that was checked, or none."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import finetune
import finetune.commands.export
from finetune.cli import main
from finetune.commands.export import Form, Gate
from finetune.errors import ExportError
from finetune.exports.bundle import load_model
from finetune.exports.exported import load_exported
from finetune.exports.onnx import save_onnx

SAVE_ONNX = "finetune.exports.onnx.save_onnx"


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (Form(), "model.ts"),
        (Form("onnx"), "model.onnx"),
        (Form("onnx", precision="int8"), "model.int8.onnx"),
        (Form("torch_export", precision="float16"), "model.float16.pt2"),
        (Form("safetensors"), "model.timm.safetensors"),
        (Form("backbone", "torchvision", "float16"), "backbone.torchvision.float16.safetensors"),
    ],
)
def test_each_kind_of_file_has_a_name_of_its_own(form: Form, name: str) -> None:
    assert form.file_name == name


def test_what_is_allowed_by_precision_and_by_word() -> None:
    assert Gate().tolerance_of("float32") == 1e-4
    assert Gate().tolerance_of("float16") == 2e-2
    assert Gate().tolerance_of("int8") is None
    assert Gate(0.3).tolerance_of("int8") == 0.3


def test_an_export_is_checked_on_the_validation_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "deployed.ts"
    assert main(["export", f"run={trained}", f"output={target}"]) == 0
    check = json.loads((tmp_path / "deployed.ts.check.json").read_text())
    assert check["images"] == check["same_labels"] == 16
    assert check["largest_difference"] <= check["tolerance"] == 1e-4
    assert check["accuracy_file"] == check["accuracy_model"]
    assert {*check["latency_ms_file"]} == {*check["latency_ms_model"]} == {"1", "32"}
    assert check["megabytes"] == pytest.approx(target.stat().st_size / 1e6)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, f"{target.name}.check.json"}
    said = capsys.readouterr().out
    assert "same answer as the model on 16 of 16 raw validation images" in said
    assert "an image in" in said
    assert f"{check['megabytes']:.1f} MB" in said


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["format=onnx"], "model.onnx"),
        (["format=onnx", "precision=int8", "max_accuracy_drop=1"], "model.int8.onnx"),
        (["format=torch_export", "precision=float16"], "model.float16.pt2"),
    ],
)
def test_every_format_lies_in_the_run_beside_its_check(
    trained: Path, tmp_path: Path, words: list[str], name: str
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["export", f"run={run}", *words, "images=5"]) == 0
    check = json.loads((run / f"{name}.check.json").read_text())
    assert check["images"] == 5
    assert (check["tolerance"] is None) == ("precision=int8" in words)
    answer = load_exported(run / name, trust=True)
    assert answer.description == load_model(run).description
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_backbone_is_compared_by_its_features(
    make_resnet_run: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_resnet_run()
    assert (
        main(["export", f"run={run}", "format=backbone", f"output={tmp_path}/b.safetensors"]) == 0
    )
    check = json.loads((tmp_path / "b.safetensors.check.json").read_text())
    assert check["same_labels"] is check["accuracy_file"] is None
    assert "the model's features on 16 raw validation images" in capsys.readouterr().out
    state = load_file(tmp_path / "b.safetensors")
    timm.create_model("resnet10t", features_only=True).load_state_dict(state, strict=True)


@pytest.fixture
def make_resnet_run(trained: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that makes a run of which the model is one of timm's, untrained."""
    from finetune.data.preprocess import Preprocess
    from finetune.exports.bundle import save_bundle
    from finetune.models.backbones import create_backbone
    from finetune.models.classifier import Classifier
    from finetune.models.heads import create_head

    def make() -> Path:
        run = shutil.copytree(trained, tmp_path / "run")
        backbone = create_backbone("resnet10t", image_size_px=32)
        head = create_head("linear", in_features=512, num_classes=2)
        save_bundle(
            run,
            classifier=Classifier(backbone, head),
            preprocess=Preprocess(32, "crop", 0.875, "bicubic", (0.5,) * 3, (0.25,) * 3),
            backbone_name="resnet10t",
            head_name="linear",
            head_arguments={},
            class_names=["lying", "standing"],
            task="multiclass",
            max_megapixels=1,
            versions={},
            command="",
        )
        return run

    return make


def _other_model(run: Path, change: str):
    """Give a stand-in for `save_onnx` that writes another model."""

    def save(model, path, *, dtype=torch.float32):
        other = load_model(run)
        head = other.classifier.head.linear
        with torch.no_grad():
            if change == "temperature":
                other.description = other.description.model_copy(update={"temperature": 2.0})
            elif change == "classes":
                head.weight.copy_(head.weight.flip(0))
                head.bias.copy_(head.bias.flip(0))
            else:
                head.weight.fill_(float("nan"))
        save_onnx(other, path, dtype=dtype)

    return save


@pytest.mark.parametrize("change", ["temperature", "classes", "nan"])
def test_a_file_that_answers_differently_is_not_kept(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    monkeypatch.setattr(SAVE_ONNX, _other_model(trained, change))
    words = ["export", f"run={trained}", "format=onnx", f"output={tmp_path / 'deployed.onnx'}"]
    # With int8's tolerance, the other order of the classes is a loss of accuracy.
    assert main([*words, "tolerance=0.999"] if change == "classes" else words) == 1
    message = capsys.readouterr().err
    expected = "is worse than the model" if change == "classes" else "does not answer like the"
    assert message.startswith("ExportError: The exported file ")
    assert expected in message
    assert ".png" in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_refused_leaves_the_old_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.onnx").write_text("the old file")
    (tmp_path / "a.onnx.check.json").write_text("{}")

    def fails(model, path, *, dtype=torch.float32):
        path.write_bytes(b"half")
        raise ExportError("no space")

    def garbage(model, path, *, dtype=torch.float32):
        path.write_bytes(b"no graph")

    for save in (fails, garbage):
        monkeypatch.setattr(SAVE_ONNX, save)
        words = [f"run={trained}", "format=onnx", f"output={tmp_path / 'a.onnx'}"]
        assert main(["export", *words]) == 1
        assert (tmp_path / "a.onnx").read_text() == "the old file"
        assert (tmp_path / "a.onnx.check.json").read_text() == "{}"
        assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=onnx", "output={}/model.ts"], "expected a name that ends in .onnx"),
        (["precision=int8"], "int8 is for format=onnx alone"),
        (["format=onx"], "onnx"),
        (["images=0"], "images"),
        (["max_accuracy_drop=2"], "max_accuracy_drop"),
        (["tolerance=0"], "tolerance"),
    ],
)
def test_combinations_that_there_are_not_are_status_2(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    typed = [word.format(tmp_path) for word in words]
    assert main(["export", f"run={trained}", f"output={tmp_path}/a.ts", *typed]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["format=safetensors"], ["format=backbone"]])
def test_nano_is_no_model_of_another_library(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    target = tmp_path / "a.safetensors"
    assert main(["export", f"run={trained}", f"output={target}", *words]) == 1
    assert "timm has no `nano`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_images_and_folders_are_status_2(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"run={trained}", f"output={tmp_path / 'no' / 'model.ts'}"]) == 2
    assert "no folder" in capsys.readouterr().err
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": str(tmp_path)}))
    assert main(["export", f"run={run}"]) == 2
    assert "not there any more" in capsys.readouterr().err
    assert main(["export", f"run={run}", "format=onx"]) == 2
    assert "torchscript" in capsys.readouterr().err


def test_an_image_that_is_broken_since_is_named(
    trained: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(stripes, tmp_path / "stripes")
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": str(root)}))
    assert main(["export", f"run={run}"]) == 2
    message = capsys.readouterr().err
    assert f"DataError: {root}" in message
    assert ".png: not an image" in message


@pytest.mark.parametrize(
    ("page", "call", "form"),
    [
        ("README.md", "torch.jit.load", None),
        ("docs/exports.md", "torch.jit.load", None),
        ("docs/exports.md", "onnxruntime", "onnx"),
        ("docs/exports.md", "torch.export.load", "torch_export"),
    ],
)
def test_the_lines_of_the_readme_read_an_exported_file(
    page: str,
    call: str,
    form: str | None,
    trained: Path,
    stripes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (Path(__file__).resolve().parents[2] / page).read_text(encoding="utf-8")
    (lines,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if call in b]
    run = shutil.copytree(trained, tmp_path / "runs" / "latest", symlinks=True)
    if form is not None:
        assert main(["export", f"run={run}", f"format={form}"]) == 0
    shutil.copy(stripes / "lying" / "000.png", tmp_path / "rose.jpg")
    shutil.copy(stripes / "lying" / "000.png", run / "rose.jpg")
    monkeypatch.chdir(tmp_path if page == "README.md" else run)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.(load|freeze)")
        exec(compile(lines, page, "exec"), {})
    label, probability = capsys.readouterr().out.split()
    (answer,) = finetune.load_model(run).predict([tmp_path / "rose.jpg"])
    assert label == answer.label
    assert float(probability) == pytest.approx(answer.probability, abs=1e-4)
