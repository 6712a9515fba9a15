"""The folder of drawn images: written once, whole, and never over something else."""

import csv
import hashlib
import json

import numpy as np
import PIL.Image
import pytest

from finetune.data.discover import Sample
from finetune.data.formulas.folder import LABELS, VAL_EVERY, write_formulas
from finetune.data.formulas.scenes import Scenes
from finetune.data.manifest import read_manifest
from finetune.errors import DataError

SCENES = Scenes("scenes", side_px=16, num_fractals=5, num_contours=5, num_textures=5)


def write(root, scenes=SCENES, images=1200, workers=2):
    steps = []
    write_formulas(root, scenes, images=images, workers=workers, on_progress=steps.append)
    return steps


def hash_of(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "formulas"
    assert write(root) == [1000, 1200]
    return root


def test_the_table_names_every_image_with_what_it_shows(written):
    with (written / LABELS).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1200 == sum(1 for _ in written.rglob("*.jpg"))
    for index in (0, 1, 999, 1000, 1199):
        image, labels = SCENES.draw(index)
        assert rows[index]["label"].split("|") == list(labels)
        assert rows[index]["split"] == ("val" if index % VAL_EVERY == 0 else "train")
        with PIL.Image.open(written / rows[index]["path"]) as kept:
            difference = np.abs(np.asarray(kept).astype(int) - image)
        assert difference.mean() < 8  # JPEG


def test_it_is_read_as_any_other_manifest(written):
    folder = read_manifest(
        written / LABELS,
        root=None,
        path_column="path",
        label_column="label",
        split_column=None,
        group_column=None,
        label_separator="|",
    )
    assert folder.class_names == SCENES.class_names
    assert isinstance(folder.samples[0], Sample)
    assert len(folder.of_split("val")) == 24


def test_the_number_of_processes_changes_nothing_and_nothing_is_drawn_twice(written, tmp_path):
    write(tmp_path / "one", workers=1)
    assert hash_of(tmp_path / "one") == hash_of(written)
    assert write(tmp_path / "one") == []


def test_other_formulas_are_not_mistaken_for_these(written):
    before = hash_of(written)
    for scenes, images in ((Scenes("fractals", side_px=16), 1200), (SCENES, 1300)):
        with pytest.raises(DataError, match=r"is not the 1,.00 .* data set"):
            write(written, scenes, images)
    assert hash_of(written) == before


def test_a_damaged_record_is_something_else(tmp_path):
    root = tmp_path / "formulas"
    root.mkdir()
    for text in ("{", json.dumps([1])):
        (root / "formulas.json").write_text(text)
        with pytest.raises(DataError, match="expected an empty or missing folder"):
            write(root)
