import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.discover import Sample, discover_folder, discover_inputs, natural_key
from finetune.errors import DataError


def make(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def test_classes_in_folders(tmp_path):
    folder = discover_folder(make(tmp_path, "2/a.jpg", "10/x/y/b.PNG", "1/c.dcm"))
    assert folder.root == tmp_path
    assert folder.class_names == ("1", "2", "10")
    assert folder.samples == (
        Sample("1/c.dcm", ("1",), None),
        Sample("10/x/y/b.PNG", ("10",), None),
        Sample("2/a.jpg", ("2",), None),
    )
    assert folder.skipped == ()


@pytest.mark.parametrize("val", ["val", "Valid", "VALIDATION"])
def test_splits_in_folders(tmp_path, val):
    make(tmp_path, "Train/a/1.jpg", "Train/b/2.jpg", f"{val}/a/3.jpg", "test/b/deep/4.jpg")
    folder = discover_folder(tmp_path)
    assert folder.class_names == ("a", "b")
    found = {(sample.split, *sample.labels, sample.path) for sample in folder.samples}
    assert found == {
        ("train", "a", "Train/a/1.jpg"),
        ("train", "b", "Train/b/2.jpg"),
        ("val", "a", f"{val}/a/3.jpg"),
        ("test", "b", "test/b/deep/4.jpg"),
    }


def test_train_alone_is_a_split(tmp_path):
    folder = discover_folder(make(tmp_path, "train/a/1.jpg", "train/b/2.jpg"))
    assert {sample.split for sample in folder.samples} == {"train"}


def test_class_without_images_in_val_is_fine(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/notes.txt")
    assert len(discover_folder(tmp_path).samples) == 3


def test_what_is_left_out_is_listed(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "b/.2.jpg", "a/7.txt", "readme.md", "8.jpg", ".git/3.jpg")
    folder = discover_folder(tmp_path)
    assert folder.class_names == ("a", "b")
    assert [sample.path for sample in folder.samples] == ["a/1.jpg", "b/1.jpg"]
    assert [(item.path, item.reason) for item in folder.skipped] == [
        ("8.jpg", "image outside a class folder"),
        ("a/7.txt", "no image suffix"),
        ("readme.md", "no image suffix"),
    ]


def test_listing_order_does_not_matter(tmp_path, monkeypatch):
    make(tmp_path, *(f"{c}/{d}/{i}.jpg" for c in "abc" for d in "xy" for i in range(5)), "n.txt")
    straight = discover_folder(tmp_path)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert discover_folder(tmp_path) == straight


def test_two_thousand_files_take_less_than_a_fifth_of_a_second(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(1000):
            os.close(os.open(tmp_path / name / f"{index}.jpg", os.O_CREAT))
    start = time.process_time()
    assert len(discover_folder(tmp_path).samples) == 2_000
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "is empty"),
        (["notes.txt"], r"no class folders \(notes.txt: no image suffix\)"),
        (["1.jpg", "2.jpg"], "has 2 images but no class folders.*<class>/<image>"),
        (["a/1.jpg"], 'one class folder, "a"; classification needs at least two'),
        (["a/b/1.jpg", "a/c/1.jpg"], "one class folder.*Did you mean `.*/a`"),
        (["train/a/1.jpg", "val/a/2.jpg"], 'train has one class folder, "a"'),
        (["a/1.jpg", "b/1.jpg", "c/x.txt"], "/c holds no image"),
        (["train/a/1.jpg", "train/b/x.txt", "val/b/1.jpg"], "train/b holds no image"),
        (["train/1.jpg", "val/a/1.jpg"], "train has 1 images but no class folders"),
        (["val/a/1.jpg", "test/a/1.jpg"], "has test and val but no train"),
        (["train/a/1.jpg", "cat/1.jpg", "dog/1.jpg"], r"splits \(train\) with others \(cat, dog\)"),
        (["train/a/1", "val/a/1", "valid/a/1"], "val and valid both mean val"),
        (
            ["train/bees/1.jpg", "train/ants/1.jpg", "val/bee/1.jpg"],
            "val has the class bee, which .*train lacks; .*ants, bees. Did you mean `bees`",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, paths, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        discover_folder(make(tmp_path, *paths))


def test_root_that_is_no_folder(tmp_path):
    make(tmp_path, "medical/a/1.jpg")
    with pytest.raises(DataError, match=r"medcal: no such folder. Did you mean `medical`"):
        discover_folder(tmp_path / "medcal")
    with pytest.raises(DataError, match="is a file; expected a folder"):
        discover_folder(tmp_path / "medical/a/1.jpg")


def test_inputs_file(tmp_path):
    make(tmp_path, "a[1].jpg", "scan")
    for name in ("a[1].jpg", "scan"):
        assert discover_inputs(str(tmp_path / name)) == [tmp_path / name]


def test_inputs_folder(tmp_path):
    make(tmp_path, "10.jpg", "9.DCM", "x/2.dicom", "x/note.txt", ".y/3.jpg", "x/._4.jpg")
    (tmp_path / "x/loop").symlink_to(tmp_path)
    assert discover_inputs(str(tmp_path)) == [
        tmp_path / p for p in ("9.DCM", "10.jpg", "x/2.dicom")
    ]


def test_inputs_glob(tmp_path, monkeypatch):
    make(tmp_path, "a/10.jpg", "a/9.jpg", "a/b/1.jpg", "a/n.txt", "a/.h/5.jpg", "a/._9.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    assert discover_inputs(f"{tmp_path}/a/*") == [tmp_path / "a/9.jpg", tmp_path / "a/10.jpg"]
    everything = [Path("a/9.jpg"), Path("a/10.jpg"), Path("a/b/1.jpg")]
    monkeypatch.chdir(tmp_path)
    assert discover_inputs("**/*.jpg") == everything
    assert discover_inputs("a/**/*.j?g") == everything


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "no such file"),
        ("photo.jpg", "no such file or folder. Did you mean `photos`"),
        ("photos", "holds no image; expected files ending in .avif"),
        ("photos/*.jpg", "no image matches"),
        ("photos/**.jpg", "not a glob"),
        ("nowhere/**/*.jpg", "no image matches"),
    ],
)
def test_inputs_that_match_nothing(tmp_path, monkeypatch, pattern, message):
    make(tmp_path, "photos/readme.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        discover_inputs(pattern)


@given(st.lists(st.text(), unique=True))
def test_natural_order_is_total(words):
    assert len({natural_key(word) for word in words}) == len(words)
    assert Counter(sorted(words, key=natural_key)) == Counter(words)


@given(st.integers(0), st.integers(0))
def test_natural_order_of_numbers(a, b):
    assert (natural_key(f"x{a}y") < natural_key(f"x{b}y")) == (a < b)


def test_natural_order_of_words():
    words = ["b", "A", "a10", "a2", "a02", "10", "9", "Z" * 3 + "9" * 5000]
    expected = ["9", "10", "A", "a02", "a2", "a10", "b", "Z" * 3 + "9" * 5000]
    assert sorted(words, key=natural_key) == expected
