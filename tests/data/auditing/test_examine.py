import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from finetune.data.auditing.examine import examine_file, examine_files
from finetune.data.auditing.fingerprint import SIZE


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "1.png"
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    small.resize((60, 40)).save(path)
    return path


def test_a_good_file(file):
    report = examine_file(file, max_megapixels=1)
    assert (report.trouble, report.reason) == (None, "")
    assert (report.format, report.mode, report.width_px, report.height_px) == ("PNG", "RGB", 60, 40)
    assert report.digest == hashlib.sha256(file.read_bytes()).digest()
    assert len(report.fingerprint) == 2 * SIZE
    assert not report.is_constant


def test_one_single_colour(file):
    Image.new("RGB", (30, 30), (1, 2, 3)).save(file)
    report = examine_file(file, max_megapixels=1)
    assert report.is_constant
    assert report.fingerprint == b""
    image = Image.new("RGB", (30, 30), (1, 2, 3))
    image.putpixel((4, 4), (1, 2, 4))
    image.save(file)
    assert not examine_file(file, max_megapixels=1).is_constant


def test_too_large_is_known_from_the_header(file):
    file.write_bytes(file.read_bytes()[:60])
    report = examine_file(file, max_megapixels=0.002)
    assert report.trouble == "too_large"
    assert "60 x 40" in report.reason
    assert "dataset.max_megapixels=0.002" in report.reason
    assert examine_file(file, max_megapixels=1).trouble == "unreadable"


def test_what_cannot_be_read(file, tmp_path):
    assert examine_file(tmp_path / "none.png", max_megapixels=1).reason == (
        "cannot be read: No such file or directory"
    )
    os.mkfifo(tmp_path / "pipe.png")
    assert examine_file(tmp_path / "pipe.png", max_megapixels=1).trouble == "unreadable"
    (tmp_path / "folder.png").mkdir()
    assert examine_file(tmp_path / "folder.png", max_megapixels=1).trouble == "unreadable"


def test_many_are_in_order(file, tmp_path):
    paths = [file, tmp_path / "none.png", file]
    reports = list(examine_files(paths, workers=0, max_megapixels=1))
    assert [report.trouble for report in reports] == [None, "unreadable", None]
