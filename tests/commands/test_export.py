"""``finetune export``: a file that was checked, or none."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import finetune
import finetune.commands.export
from finetune.cli import main


def test_an_export_is_checked_on_the_validation_images(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "deployed.ts"
    assert main(["export", f"run={trained}", f"output={target}"]) == 0
    check = json.loads((tmp_path / "deployed.ts.check.json").read_text())
    assert check["images"] == check["same_labels"] == 16
    assert check["largest_difference"] <= 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {target.name, f"{target.name}.check.json"}


def test_a_file_that_answers_differently_is_not_kept(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        finetune.commands.export,
        "load_torchscript",
        lambda path: lambda images: torch.tensor([[0.5, 0.5]]),
    )
    assert main(["export", f"run={trained}", f"output={tmp_path / 'deployed.ts'}"]) == 1
    message = capsys.readouterr().err
    assert "does not answer like the model" in message
    assert ".png" in message
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


def test_the_lines_of_the_readme_read_an_exported_file(
    trained: Path,
    stripes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = [block for block in blocks if "torch.jit.load" in block]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").symlink_to(trained)
    shutil.copy(stripes / "lying" / "000.png", tmp_path / "rose.jpg")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.load")
        exec(compile(lines, "README.md", "exec"), {})
    label, probability = capsys.readouterr().out.split()
    (answer,) = finetune.load_model(trained).predict([tmp_path / "rose.jpg"])
    assert label == answer.label
    assert float(probability) == pytest.approx(answer.probability, abs=1e-4)
