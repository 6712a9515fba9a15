import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from finetune.data.audit import Range, audit_folder, check_findings
from finetune.data.discover import ImageFolder, Sample, discover_folder
from finetune.errors import DataError
from finetune.run import write_json


def image(seed, width=120, height=90):
    """Return a picture of smooth shapes of several sizes."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for side in (3, 8, 24)
    ]
    return Image.fromarray(np.average([np.asarray(layer) for layer in layers], axis=0).astype("u1"))


@pytest.fixture
def root(tmp_path):
    """Write a folder without trouble."""
    for split, count in (("train", 12), ("val", 2)):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                seed = [len(split), ord(name), index]
                image(seed).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def findings(audit):
    return {finding.name: finding for finding in audit.findings}


def test_clean_folder(root):
    image(5, width=160).save(root / "train/a/0.png")
    image(6).save(root / "train/a/6.bmp")
    image(7).save(root / "train/a/7.jpg")
    progress = []
    audit = audit_folder(discover_folder(root), on_progress=progress.append)
    assert audit.findings == ()
    assert audit.unreadable == {}
    assert audit.num_images == 30
    assert audit.counts == {"train": {"a": 14, "b": 12}, "val": {"a": 2, "b": 2}}
    assert audit.width_px == Range(120, 120, 160)
    assert audit.height_px == Range(90, 90, 90)
    assert audit.formats == {"PNG": 28, "BMP": 1, "JPEG": 1}
    assert audit.modes == {"RGB": 30}
    assert set(audit.digests) == {sample.path for sample in discover_folder(root).samples}
    assert progress == list(range(1, 31))
    check_findings(audit)


def make_trouble(root):
    train, val = root / "train", root / "val"
    image(1, width=130).save(train / "a/whole.jpg")
    (train / "a/cut.jpg").write_bytes((train / "a/whole.jpg").read_bytes()[:400])
    (train / "b/empty.png").touch()
    (train / "a/wrong.jpg").write_bytes((train / "a/1.png").read_bytes())
    (train / "a/leak.png").write_bytes((val / "a/1.png").read_bytes())
    (train / "b/two.jpg").write_bytes((train / "a/whole.jpg").read_bytes())
    (train / "b/note.txt").touch()
    Image.new("L", (120, 90)).save(train / "b/black.png")
    image(2, width=400).save(train / "b/large.png")
    image(3).save(train / "a/near.jpg", quality=50)
    image(3).save(val / "b/near.png")
    image(4).save(train / "a/again.jpg", quality=50)
    image(4).save(train / "a/again.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_trouble_is_named(root, workers):
    make_trouble(root)
    audit = audit_folder(discover_folder(root), workers=workers, max_megapixels=0.03)
    assert [(item.name, item.severity, item.paths) for item in audit.findings] == [
        ("conflicting_labels", "error", ("train/a/whole.jpg", "train/b/two.jpg")),
        ("duplicates_across_splits", "error", ("train/a/leak.png", "val/a/1.png")),
        ("unreadable", "warning", ("train/a/cut.jpg", "train/b/empty.png")),
        ("too_large", "warning", ("train/b/large.png",)),
        ("constant", "warning", ("train/b/black.png",)),
        ("near_conflicting_labels", "warning", ("train/a/near.jpg", "val/b/near.png")),
        ("near_duplicates_across_splits", "warning", ("train/a/near.jpg", "val/b/near.png")),
        ("duplicates", "warning", ("train/a/1.png", "train/a/wrong.jpg")),
        ("near_duplicates", "warning", ("train/a/again.jpg", "train/a/again.png")),
        ("wrong_suffix", "info", ("train/a/wrong.jpg",)),
        ("mixed_modes", "info", ("train/b/black.png",)),
        ("skipped", "info", ("train/b/note.txt",)),
    ]
    assert "truncated" in audit.unreadable["train/a/cut.jpg"].lower()
    assert "the file is empty" in audit.unreadable["train/b/empty.png"]
    assert "0.036 megapixels" in audit.unreadable["train/b/large.png"]
    assert set(audit.digests) == {sample.path for sample in discover_folder(root).samples} - set(
        audit.unreadable
    )
    assert all(re.match(r"\d", item.message) for item in audit.findings)
    assert all(item.message.endswith(".") for item in audit.findings)


def test_errors_stop_unless_accepted(root):
    make_trouble(root)
    folder = discover_folder(root)
    with pytest.raises(DataError) as caught:
        check_findings(audit_folder(folder))
    assert str(caught.value).splitlines() == [
        "the data has 2 errors, expected none.",
        "1 exact copy of an image with other labels. Decide on one label, and remove the other "
        "copies.",
        "  train/a/whole.jpg, train/b/two.jpg",
        "1 exact copy of an image in another split. Keep each in one split: what is tested on must "
        "not be trained on.",
        "  train/a/leak.png, val/a/1.png",
        "To go on all the same: dataset.accept=[conflicting_labels,duplicates_across_splits]",
    ]
    with pytest.raises(DataError, match=r"has 1 error,(.|\n)*=\[conflicting_labels,duplicates_ac"):
        check_findings(audit_folder(folder, accept=["conflicting_labels"]))
    accept = ["conflicting_labels", "duplicates_across_splits"]
    check_findings(audit_folder(folder, accept=accept))


def test_an_error_shows_three_files(root):
    for index in range(5):
        name = os.fsdecode(b"x\xff\n%d.png" % index)
        (root / "val/a" / name).write_bytes((root / "train/a/1.png").read_bytes())
    with pytest.raises(DataError) as caught:
        check_findings(audit_folder(discover_folder(root)))
    assert (
        r"  train/a/1.png, 'val/a/x\udcff\n0.png', 'val/a/x\udcff\n1.png', 3 more"
        in str(caught.value).splitlines()
    )


def test_plain_values(root, tmp_path):
    make_trouble(root)
    (root / "train/a" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"none")
    audit = audit_folder(discover_folder(root))
    values = audit.to_dict()
    write_json(tmp_path / "audit.json", values)
    read = json.loads((tmp_path / "audit.json").read_text())
    assert read == json.loads(json.dumps(values))
    assert os.fsdecode(b"train/a/caf\xe9.png") in read["unreadable"]
    assert "digests" not in read
    assert read["findings"][0]["accepted"] is False


def test_limits_are_passed_on(root):
    image(5, width=160).save(root / "train/a/0.png")
    audit = audit_folder(discover_folder(root), max_megapixels=0.012, min_side_px=91)
    assert list(audit.unreadable) == ["train/a/0.png"]
    assert len(findings(audit)["too_small"].paths) == 27
    assert findings(audit_folder(discover_folder(root), expect_groups=True)).keys() == {"no_groups"}


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


def test_copies_of_a_copy_hang_together(root):
    """One of each set of equal files stands in a set of files that look the same."""
    image(3).save(root / "train/a/x.png")
    (root / "train/a/y.png").write_bytes((root / "train/a/x.png").read_bytes())
    image(3).save(root / "train/a/z.jpg", quality=60)
    audit = audit_folder(discover_folder(root))
    assert audit.duplicates == (("train/a/x.png", "train/a/y.png"),)
    assert audit.near_duplicates == (("train/a/x.png", "train/a/z.jpg"),)


def encode_again(source, rng):
    """Return another file of the same picture, most of them of another size."""
    if rng.random() < 0.6:
        scale = float(np.exp(rng.uniform(np.log(0.4), np.log(2))))
        size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
        methods = [method for method in Image.Resampling if method != Image.Resampling.BOX]
        source = source.resize(size, methods[rng.integers(len(methods))])
    file = io.BytesIO()
    kind = ("JPEG", "WEBP", "PNG")[rng.integers(3)]
    options = {"compress_level": 1} if kind == "PNG" else {"quality": int(rng.integers(30, 96))}
    source.save(file, kind, **options)
    return file.getvalue()


def plant_leaks(root, originals):
    """Copy 100 images into val as they are, and 100 encoded again or resized."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(originals))[:200]
    samples = [Sample(path.relative_to(root).as_posix(), ("a",), "train") for path in originals]
    planted = {}
    for index in chosen:
        source = originals[index]
        is_exact = len(planted) < 100
        copy = root / "val" / f"{'exact' if is_exact else 'again'}_{index}.png"
        copy.parent.mkdir(exist_ok=True)
        with Image.open(source) as opened:
            content = source.read_bytes() if is_exact else encode_again(opened.convert("RGB"), rng)
        copy.write_bytes(content)
        planted[f"val/{copy.name}"] = samples[index].path
        samples.append(Sample(f"val/{copy.name}", ("a",), "val"))
    return ImageFolder(root, ("a",), tuple(samples), ()), planted


def count_found(audit, planted):
    """Count exact leaks found, others found, and pairs of distinct images taken for copies."""
    sets = {path: set(paths) for paths in audit.near_duplicates for path in paths}
    exact = {path for paths in audit.duplicates for path in paths}
    found_exact = sum(name in exact for name in planted if "/exact_" in name)
    # A JPEG that is encoded by the settings that it has can come out the same.
    found = sum(
        copy in exact or original in sets.get(copy, ())
        for copy, original in planted.items()
        if "/again_" in copy
    )
    false = sum(
        len({planted.get(path, path) for path in paths}) - 1 for paths in audit.near_duplicates
    )
    return found_exact, found, false


@pytest.mark.parametrize("source", ["synthetic", "chest_xray", "hymenoptera"])
def test_planted_leaks(tmp_path, request, source, capsys):
    (tmp_path / "train").mkdir()
    if source == "synthetic":
        rng = np.random.default_rng(0)
        for index in range(1000):
            width, height = (int(side) for side in rng.integers(100, 250, 2))
            image(index, width, height).save(tmp_path / f"train/{index}.jpg", quality=90)
    else:
        folder = request.getfixturevalue("real_data") / "data" / source
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".jpeg"))
        unique = {path.read_bytes(): path for path in paths}
        for index in np.random.default_rng(0).permutation(len(unique))[:1000]:
            content, path = list(unique.items())[index]
            (tmp_path / "train" / path.name).write_bytes(content)
    originals = sorted((tmp_path / "train").iterdir())
    folder, planted = plant_leaks(tmp_path, originals)
    audit = audit_folder(folder)
    exact, found, false = count_found(audit, planted)
    with capsys.disabled():
        print(
            f"\n{source}: {len(originals)} images; {exact} of 100 exact copies found, "
            f"{found} of 100 encoded again or resized, {false} false pairs"
        )
    assert exact == 100
    assert len(findings(audit)["duplicates_across_splits"].paths) >= 200
    assert found >= 95
    assert false <= len(originals) / 1000
