import json

import numpy as np
import pytest
from PIL import Image

from finetune.data.audit import Range, audit_folder
from finetune.data.discover import discover_folder


def image(seed, width=12, height=10):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def root(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
    image(1).save(tmp_path / "train/a/1.png")
    image(2, width=40).save(tmp_path / "train/a/2.jpg")
    image(3).save(tmp_path / "train/b/3.bmp")
    image(4).convert("L").save(tmp_path / "val/a/4.png")
    return tmp_path


def findings(audit):
    return {finding.name: finding for finding in audit.findings}


def test_clean_folder(root):
    image(5).save(root / "val/b/5.png")
    progress = []
    audit = audit_folder(discover_folder(root), on_progress=progress.append)
    assert audit.findings == ()
    assert audit.unreadable == {}
    assert audit.num_images == 5
    assert audit.counts == {"train": {"a": 2, "b": 1}, "val": {"a": 1, "b": 1}}
    assert audit.width_px == Range(12, 12, 40)
    assert audit.height_px == Range(10, 10, 10)
    assert audit.formats == {"PNG": 3, "JPEG": 1, "BMP": 1}
    assert audit.modes == {"RGB": 4, "L": 1}
    assert progress == [1, 2, 3, 4, 5]


def make_trouble(root):
    (root / "train/a/cut.jpg").write_bytes((root / "train/a/2.jpg").read_bytes()[:400])
    (root / "train/b/empty.png").touch()
    (root / "train/a/wrong.jpg").write_bytes((root / "train/a/1.png").read_bytes())
    (root / "val/a/leak.png").write_bytes((root / "val/a/4.png").read_bytes())
    (root / "train/a/leak.png").write_bytes((root / "val/a/4.png").read_bytes())
    (root / "train/b/note.txt").touch()
    (root / "train/b/two.jpg").write_bytes((root / "train/a/2.jpg").read_bytes())


@pytest.mark.parametrize("workers", [0, 2])
def test_trouble_is_named(root, workers):
    make_trouble(root)
    audit = audit_folder(discover_folder(root), workers=workers)
    found = findings(audit)
    assert {name: (finding.severity, finding.paths) for name, finding in found.items()} == {
        "unreadable": ("error", ("train/a/cut.jpg", "train/b/empty.png")),
        "duplicate_across_classes": ("error", ("train/a/2.jpg", "train/b/two.jpg")),
        "duplicate_across_splits": ("error", ("train/a/leak.png", "val/a/4.png", "val/a/leak.png")),
        "duplicate": ("warning", ("train/a/1.png", "train/a/wrong.jpg")),
        "missing_class": ("warning", ()),
        "wrong_suffix": ("info", ("train/a/wrong.jpg",)),
        "skipped": ("info", ("train/b/note.txt",)),
    }
    assert [f.severity for f in audit.findings] == ["error"] * 3 + ["warning"] * 2 + ["info"] * 2
    assert "val has no image of b" in found["missing_class"].message
    assert "truncated" in audit.unreadable["train/a/cut.jpg"].lower()
    assert audit.unreadable["train/b/empty.png"].endswith(
        "the file is empty, expected one of " + ("AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP")
    )
    assert all(finding.message.endswith(".") for finding in audit.findings)
    assert all(finding.remedy.endswith(".") for finding in audit.findings)
    assert json.loads(json.dumps(audit.to_dict()))["findings"][0]["name"] == "unreadable"


def test_limit_is_passed_on(root):
    audit = audit_folder(discover_folder(root), max_megapixels=0.0002)
    assert list(audit.unreadable) == ["train/a/2.jpg"]
    assert audit.width_px == Range(12, 12, 12)


def test_folder_without_a_readable_image(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(name.encode())
    audit = audit_folder(discover_folder(tmp_path))
    assert audit.counts == {"all": {"a": 1, "b": 1}}
    assert audit.width_px is None
    assert len(audit.unreadable) == 2


def test_file_that_went_away(root):
    folder = discover_folder(root)
    (root / "train/a/1.png").unlink()
    assert audit_folder(folder).unreadable == {
        "train/a/1.png": "cannot be read: No such file or directory"
    }
