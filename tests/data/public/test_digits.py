import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from sklearn.datasets import load_digits

from finetune.data.decode import decode_image, read_header
from finetune.data.discover import discover_folder
from finetune.data.public.digits import NUM_IMAGES, write_digits
from finetune.errors import DataError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "some" / "digits"
    write_digits(root)
    return root


def test_all_digits_are_there(root):
    folder = discover_folder(root)
    assert folder.class_names == tuple("0123456789")
    assert len(folder.samples) == NUM_IMAGES == 1797
    assert folder.skipped == ()
    assert names(root.parent) == ["digits"]
    scans, labels = load_digits(return_X_y=True)
    for index in (0, 1, 500, 1796):
        path = root / str(labels[index]) / f"{index:04}.png"
        assert read_header(path).mode == "L"
        pixels = decode_image(path)[..., 0].reshape(-1)
        assert np.abs(pixels / 255 - scans[index] / 16).max() <= 0.5 / 255


def test_a_complete_folder_is_left_alone(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_digits(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("there", ["0/0000.png", "cat/1.jpg"])
def test_a_partial_or_foreign_folder_is_not_overwritten(tmp_path, there):
    file = tmp_path / "digits" / there
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"is not the digits data set \(it holds"):
        write_digits(tmp_path / "digits")
    assert [path for path in (tmp_path / "digits").rglob("*") if path.is_file()] == [file]
    assert file.read_bytes() == b"mine"


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "digits").touch()
    with pytest.raises(DataError, match="it is a file"):
        write_digits(tmp_path / "digits")
    with pytest.raises(DataError, match="below cannot be written"):
        write_digits(tmp_path / "digits" / "below")


def test_an_empty_folder_is_filled(tmp_path):
    write_digits(tmp_path)
    assert names(tmp_path) == list("0123456789")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    with pytest.raises(DataError, match="No space left on device"):
        write_digits(tmp_path / "digits")
    assert names(tmp_path) == []


def test_processes_at_once(tmp_path):
    root = tmp_path / "digits"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(write_digits, [root] * 2))
    assert len(discover_folder(root).samples) == NUM_IMAGES
    assert names(tmp_path) == ["digits"]
