"""``finetune inspect``: what a newcomer reads before training."""

import json
import shutil
from pathlib import Path

import pytest

from finetune.cli import main


def test_counts_sizes_and_findings_are_shown(
    stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(stripes, root)
    (root / "lying" / "bad [red].jpg").write_bytes(b"no image")
    shutil.copy(root / "lying" / "000.png", root / "standing" / "same.png")
    output = tmp_path / "audit.json"
    assert main(["inspect", f"dataset.root={root}", f"output={output}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "82 images in 2 classes" in text
    assert "lying 32 8 40" in text
    assert "bad [red].jpg" in text
    assert "duplicate_across_classes" in text
    audit = json.loads(output.read_text())
    assert list(audit["unreadable"]) == ["lying/bad [red].jpg"]


def test_a_clean_folder_is_called_clean(stripes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"dataset.root={stripes}"]) == 0
    assert "Nothing is wrong" in capsys.readouterr().out


def test_real_folders(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"dataset.root={real_data / 'data' / 'brain_mri'}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "253 images in 2 classes" in text
    assert "6 images are not what their suffix says" in text
    assert "RGBA" in text


def test_no_root_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "dataset=medical"]) == 2
    assert "dataset.root" in capsys.readouterr().err
