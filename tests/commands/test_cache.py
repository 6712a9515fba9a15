import os

import numpy as np
import pytest
import torch

from finetune.cli import main
from finetune.commands import cache
from finetune.data.image_cache import open_image_cache
from finetune.training.feature_cache import open_feature_cache


@pytest.fixture
def folder(tmp_path):
    """Return a cache with one audit and two files of images, made as a training makes them."""
    image = np.zeros((50, 50, 3), np.uint8)
    for name in ("train", "val"):
        images = open_image_cache(
            "disk", tmp_path / "images", name=name, keys=[bytes(16)], max_bytes=10**6
        )
        assert images.put(0, image)
    (tmp_path / "audits").mkdir()
    (tmp_path / "audits" / f"one{cache.SUFFIXES['audits'][0]}").write_text("{}")
    return tmp_path


def call(*words, folder):
    return main(["cache", f"cache_folder={folder}", *words])


def count(folder):
    return [len(list((folder / kind).iterdir())) for kind in ("audits", "images")]


def test_it_shows_what_is_kept(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert call(folder=folder) == 0
    lines = capsys.readouterr().out.splitlines()
    audits, images = (line.split() for line in lines if line.startswith(("audits", "images")))
    assert audits[1] == "1"
    assert images[1] == "2"
    assert images[3] in ("kB", "MB")
    assert images[4:6] == ["just", "now"]
    assert str(folder / "images") in images
    assert lines[-1] == "Remove it: finetune cache clear=all"
    assert count(folder) == [1, 2]


@pytest.mark.parametrize(
    ("what", "left", "said"),
    [
        ("images", [1, 0], ["Removed from images: 2 files"]),
        ("audits", [0, 2], ["Removed from audits: 1 file,"]),
        (
            "all",
            [0, 0],
            ["audits: 1 file,", "downloads: 0 files", "features: 0 files", "images: 2 files"],
        ),
    ],
)
def test_it_removes_what_is_named(folder, capsys, what, left, said):
    assert call(f"clear={what}", folder=folder) == 0
    printed = capsys.readouterr().out
    assert count(folder) == left
    assert all(text in printed for text in said)
    assert printed.count("Removed") == len(said)


def test_features_are_shown_and_removed(tmp_path, capsys):
    features = open_feature_cache(tmp_path / "features", key="ab" * 32)
    features.add(["00" * 32], torch.ones(1, 4))
    assert call("clear=images", folder=tmp_path) == 0
    assert len(list((tmp_path / "features").iterdir())) == 1
    assert call("clear=features", folder=tmp_path) == 0
    assert "Removed from features: 1 file," in capsys.readouterr().out
    assert not list((tmp_path / "features").iterdir())


def test_it_removes_only_what_was_made_here(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious.bin").write_text("precious")
    (folder / "images" / "notes.txt").write_text("mine")
    (folder / "images" / "link.bin").symlink_to(elsewhere / "precious.bin")
    (folder / "images" / "folder.bin").mkdir()
    (folder / "precious.bin").write_text("precious")
    assert call("clear=all", folder=folder) == 0
    left = sorted(path.name for path in (folder / "images").iterdir())
    assert left == ["folder.bin", "link.bin", "notes.txt"]
    assert (elsewhere / "precious.bin").read_text() == "precious"
    assert (folder / "precious.bin").exists()


def test_a_linked_folder_is_not_followed(tmp_path, capsys):
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious.bin").write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "images").symlink_to(target)
    assert call("clear=images", folder=tmp_path / "cache") == 2
    assert "is a link, which is not followed" in capsys.readouterr().err
    assert (target / "precious.bin").exists()


def test_a_cache_that_is_not_there_is_empty(tmp_path, capsys):
    assert call(folder=tmp_path / "none") == 0
    printed = capsys.readouterr().out
    assert "never" in printed
    assert "Remove it" not in printed
    assert call("clear=all", folder=tmp_path / "none") == 0
    assert "Removed from images: 0 files, 0 B." in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_listed_is_named(tmp_path, capsys):
    (tmp_path / "audits").write_text("a file")
    assert call(folder=tmp_path) == 2
    assert "audits cannot be listed: Not a directory." in capsys.readouterr().err


def test_a_run_goes_on_with_images_that_were_removed(folder):
    images = open_image_cache(
        "disk", folder / "images", name="train", keys=[bytes(16)], max_bytes=10**6
    )
    assert call("clear=images", folder=folder) == 0
    assert images.get(0) is not None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (12_345_678, "12.3 MB"), (10**13, "10000 GB")],
)
def test_sizes_are_short(count, text):
    assert cache._size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "just now"), (59, "just now"), (60, "1 minute ago"), (7300, "2 hours ago")],
)
def test_ages_are_short(seconds, text):
    assert cache._age(seconds) == text
    assert cache._age(86400 * 3) == "3 days ago"


def test_files_that_vanish_meanwhile_are_no_fault(folder):
    files = cache.list_kept(folder / "images", cache.SUFFIXES["images"])
    assert [file.bytes >= 7500 for file in files] == [True, True]
    os.unlink(files[0].path)  # noqa: PTH108 - as another process would
    cache._remove(files)
    assert count(folder) == [1, 0]
