"""How folders are laid out, by people and by programs: each gives its classes or a named error."""

import os
from dataclasses import dataclass, field

import pytest

from finetune.data.discover import discover_folder
from finetune.errors import DataError


@dataclass
class Layout:
    """Files (``…/`` is an empty folder), links, and the classes or the error that they give."""

    files: str | list[str]
    classes: list[str] | None = None
    error: str | None = None
    links: dict[str, str] = field(default_factory=dict)
    samples: int | None = None
    skipped: list[str] = field(default_factory=list)


NOT_UTF8 = os.fsdecode(b"caf\xe9")

LAYOUTS = {
    # One folder per class.
    "plain": Layout("dog/1.jpg cat/1.jpg", ["cat", "dog"]),
    "numeric": Layout("10/a.png 2/a.png 1/a.png 02/a.png", ["1", "02", "2", "10"]),
    "mixed case": Layout("cat/1.jpg Cat/1.JPG bird/1.Jpeg", ["bird", "Cat", "cat"]),
    "nested below the class": Layout("a/x/y/1.jpg a/2.jpg b/z/3.jpg", ["a", "b"], samples=3),
    "nested class with a class's name": Layout("a/b/1.jpg b/a/2.jpg", ["a", "b"], samples=2),
    "scans": Layout("a/1.dcm b/2.DICOM b/3.tif", ["a", "b"], samples=3),
    "extra files": Layout(
        "a/1.jpg b/1.jpg readme.md a/notes.txt b/labels.csv",
        ["a", "b"],
        skipped=["a/notes.txt", "b/labels.csv", "readme.md"],
    ),
    "images beside class folders": Layout("a/1.jpg b/1.jpg 2.jpg", ["a", "b"], skipped=["2.jpg"]),
    "hidden": Layout("a/1.jpg b/1.jpg .git/2.jpg a/.x/3.jpg b/.4.jpg", ["a", "b"], samples=2),
    "left by programs": Layout(
        "a/1.jpg b/1.jpg __MACOSX/a/1.jpg a/._1.jpg .ipynb_checkpoints/2.jpg "
        "b/.ipynb_checkpoints/1-checkpoint.jpg a/.DS_Store b/Thumbs.db desktop.ini",
        ["a", "b"],
        samples=2,
    ),
    "odd names": Layout(
        ["with space/a b.jpg", "-rf/-1.jpg", "näive 🙂/1.jpg", "two\nlines/1\n.jpg", "%s/{}.jpg"],
        ["%s", "-rf", "näive 🙂", "two\nlines", "with space"],
    ),
    "names that are not UTF-8": Layout([f"{NOT_UTF8}/1.jpg", "a/1.jpg"], ["a", NOT_UTF8]),
    "loop of links": Layout(
        "a/1.jpg b/1.jpg", ["a", "b"], links={"a/again": "."}, samples=2, skipped=["a/again"]
    ),
    "linked class": Layout(
        "a/1.jpg b/1.jpg", ["a", "b"], links={"c": "a"}, samples=2, skipped=["c"]
    ),
    "linked image": Layout(
        "a/1.jpg b/1.jpg", ["a", "b"], links={"b/2.jpg": "a/1.jpg"}, skipped=["b/2.jpg"]
    ),
    # One folder per split.
    "splits": Layout("train/a/1.jpg train/b/1.jpg val/a/2.jpg test/b/3.jpg", ["a", "b"]),
    "splits in mixed case": Layout("Train/a/1.jpg Train/b/1.jpg VAL/b/2.jpg", ["a", "b"]),
    "splits and nothing else": Layout("train/a/1.jpg train/b/1.jpg", ["a", "b"]),
    "splits of another name": Layout(
        "train/a/1.jpg train/b/1.jpg validation/a/2.jpg", ["a", "b"], samples=3
    ),
    "class missing in val": Layout(
        "train/2/1.jpg train/10/1.jpg train/1/1.jpg val/10/2.jpg", ["1", "2", "10"]
    ),
    "class empty in val": Layout("train/a/1.jpg train/b/1.jpg val/a/2.jpg val/b/", ["a", "b"]),
    "val empty": Layout("train/a/1.jpg train/b/1.jpg val/", ["a", "b"], samples=2),
    "images beside class folders of a split": Layout(
        "train/a/1.jpg train/b/1.jpg val/a/1.jpg val/2.jpg", ["a", "b"], skipped=["val/2.jpg"]
    ),
    # What is no data set.
    "missing": Layout("", error="no such folder"),
    "empty": Layout("./", error="is empty"),
    "only hidden": Layout(".git/1.jpg .a/2.jpg", error="is empty"),
    "no class folders": Layout("1.jpg 2.jpg", error="has 2 images but no class folders"),
    "no images": Layout(
        "a/b.txt ab/2.txt", error="a holds no image .a/b.txt: no image suffix.; each class needs"
    ),
    "empty class": Layout("a/1.jpg b/1.jpg c/", error="c holds no image"),
    "class of a link alone": Layout(
        "a/1.jpg b/",
        links={"b/1": "a"},
        error="b holds no image .b/1: symbolic link, not followed.;",
    ),
    "one class": Layout("normal/1.jpg", error='one class folder, "normal"; .* at least two'),
    "one level too high": Layout("data/a/1.jpg data/b/1.jpg", error="Did you mean `.*/data`"),
    "one class in train": Layout("train/a/1.jpg val/a/1.jpg", error='one class folder, "a"'),
    "class only in val": Layout(
        "train/dogs/1.jpg train/cats/1.jpg val/cat/1.jpg",
        error="val has the class cat, which .*train lacks; .* Did you mean `cats`",
    ),
    "class in another case in val": Layout(
        "train/Cat/1.jpg train/dog/1.jpg val/cat/1.jpg", error="the class cat.*Did you mean `Cat`"
    ),
    "class empty in train": Layout(
        "train/a/1.jpg train/b/1.jpg train/c/ val/a/1.jpg", error="train/c holds no image"
    ),
    "no train": Layout("val/a/1.jpg test/a/1.jpg", error="test and val but no train folder"),
    "linked train": Layout(
        "val/a/1.jpg x.txt",
        links={"train": "val"},
        error="no train folder .train: symbolic link, not followed.;",
    ),
    "val twice": Layout(
        "train/a/1.jpg val/a/1.jpg valid/a/1.jpg", error="val and valid both mean val"
    ),
    "classes named like splits beside others": Layout(
        "test/1.jpg train/1.jpg car/1.jpg",
        error=r"mixes folders named like splits \(test, train\) with others \(car\)",
    ),
    "images in split folders": Layout(
        "train/1.jpg val/2.jpg", error="train has 1 images but no class folders"
    ),
    "a file": Layout("../root", error="is a file; expected a folder"),
}


def lay_out(root, layout):
    files = layout.files.split() if isinstance(layout.files, str) else layout.files
    for name in files:
        file = root / name
        if name.endswith("/"):
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    for name, target in layout.links.items():
        (root / name).symlink_to(root / target)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(tmp_path, layout):
    root = tmp_path / "root"
    if layout.files == "../root":
        root.touch()
    else:
        lay_out(root, layout)
    if layout.error is not None:
        with pytest.raises(DataError, match=f"(?s){layout.error}"):
            discover_folder(root)
        return
    folder = discover_folder(root)
    indices = {name: index for index, name in enumerate(folder.class_names)}
    assert indices == {name: index for index, name in enumerate(layout.classes)}
    # A sample's class is the folder below the root, or below that of its split.
    for sample in folder.samples:
        assert sample.labels == (sample.path.split("/")[0 if sample.split is None else 1],)
        assert (root / sample.path).is_file()
    if layout.samples is not None:
        assert len(folder.samples) == layout.samples
    assert [item.path for item in folder.skipped] == layout.skipped


def test_there_are_enough_layouts():
    print(f"{len(LAYOUTS)} layouts, {sum(item.error is None for item in LAYOUTS.values())} usable")
    assert len(LAYOUTS) >= 15
    assert all((item.classes is None) != (item.error is None) for item in LAYOUTS.values())
