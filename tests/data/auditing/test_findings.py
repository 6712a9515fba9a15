from pathlib import Path

import pytest

from finetune.config import FINDINGS
from finetune.data.auditing import findings
from finetune.data.auditing.examine import Report
from finetune.data.auditing.findings import count_classes, list_findings
from finetune.data.discover import ImageFolder, Sample
from finetune.data.listing import Skipped


def report(**values):
    return Report(**{"format": "PNG", "mode": "RGB", "width_px": 50, "height_px": 40, **values})


def find(samples, *, reports=(), same=(), similar=(), skipped=(), **options):
    names = sorted({label for sample in samples for label in sample.labels} | {"a", "b"})
    folder = ImageFolder(Path("root"), tuple(names), tuple(samples), tuple(skipped))
    found = list_findings(
        folder,
        {sample.path: dict(reports).get(sample.path, report()) for sample in samples},
        same,
        similar,
        **{"min_side_px": 16, "expect_groups": False, "accept": (), **options},
    )
    return {finding.name: finding for finding in found}


def samples(count=20, split=None):
    """Return as many of class a as of b."""
    prefix = f"{split}/" if split else ""
    return [Sample(f"{prefix}{'ab'[i % 2]}/{i}.png", ("ab"[i % 2],), split) for i in range(count)]


def test_every_finding_has_a_rule_in_the_order_of_the_vocabulary():
    assert tuple(findings.RULES) == FINDINGS
    assert all(remedy.endswith(".") for _, remedy in findings.RULES.values())


def test_nothing_is_wrong():
    assert find(samples()) == {}


def test_refused_files_are_warned_of_with_a_reason():
    reports = {
        "a/0.png": Report("unreadable", "the file is empty"),
        "b/1.png": Report("too_large", "9 megapixels"),
        "a/2.png": Report("unreadable", "cannot be read"),
    }
    found = find(samples(30), reports=reports)
    assert list(found) == ["unreadable", "too_large"]
    assert found["unreadable"].severity == "warning"
    assert found["unreadable"].paths == ("a/0.png", "a/2.png")
    assert (
        found["unreadable"].message == "2 images cannot be decoded; the first: the file is empty."
    )
    assert found["too_large"].message == "1 image over the limit; the first: 9 megapixels."
    assert "dataset.max_megapixels" in found["too_large"].remedy


def test_odd_images():
    reports = {
        "a/0.png": report(height_px=15),
        "b/1.png": report(is_constant=True),
        "a/2.png": report(format="JPEG"),
        "b/3.png": report(mode="I;16"),
    }
    found = find(samples(), reports=reports)
    assert {name: (item.severity, item.paths, item.message) for name, item in found.items()} == {
        "too_small": ("warning", ("a/0.png",), "1 image with a shorter side below 16 px."),
        "constant": ("warning", ("b/1.png",), "1 image of one single colour."),
        "wrong_suffix": ("info", ("a/2.png",), "1 image with a wrong suffix: 1 JPEG."),
        "mixed_modes": ("info", ("b/3.png",), "2 pixel types: 19 RGB, 1 I;16."),
    }


@pytest.mark.parametrize(("key", "prefix"), [("same", ""), ("similar", "near_")])
def test_copies(key, prefix):
    both = samples(30, "train") + samples(30, "val")
    sets = [
        ("train/a/0.png", "train/a/2.png", "train/a/4.png"),
        ("train/a/6.png", "train/b/1.png"),
        ("train/a/8.png", "val/a/8.png"),
        ("train/b/9.png", "val/a/2.png"),
    ]
    found = find(both, **{key: sets})
    severity = "warning" if prefix else "error"
    assert {name: (item.severity, item.paths) for name, item in found.items()} == {
        f"{prefix}conflicting_labels": (severity, sets[1] + sets[3]),
        f"{prefix}duplicates_across_splits": (severity, sets[2] + sets[3]),
        f"{prefix}duplicates": ("warning", sets[0]),
    }
    assert found[f"{prefix}duplicates"].message.startswith("2 ")
    assert found[f"{prefix}duplicates_across_splits"].message.startswith("2 ")


def test_copies_where_nobody_has_decided_on_splits_are_no_leak():
    found = find(samples(), same=[("a/0.png", "a/2.png")])
    assert list(found) == ["duplicates"]
    assert found["duplicates"].message == "1 exact copy of another image."


def test_several_labels_conflict_as_a_whole():
    some = [Sample(f"{i}.png", ("a", "b"), None) for i in range(20)]
    assert "conflicting_labels" not in find(some, same=[("0.png", "1.png")])
    some[1] = Sample("1.png", ("a",), None)
    assert "conflicting_labels" in find(some, same=[("0.png", "1.png")])
    some[1] = Sample("1.png", (), None)
    assert "conflicting_labels" in find(some, same=[("0.png", "1.png")])


def test_groups():
    some = [
        Sample(f"{split}/{group}{i}.png", ("ab"[i % 2],), split, group)
        for split, group in (("train", "x"), ("val", "x"), ("train", "y"), ("val", None))
        for i in range(20)
    ]
    found = find(some, expect_groups=True)
    assert list(found) == ["group_across_splits"]
    assert found["group_across_splits"].severity == "error"
    assert found["group_across_splits"].message == "1 group in several splits, with 40 images."


def test_groups_are_missed_where_they_are_expected():
    found = find(samples(), expect_groups=True)
    assert list(found) == ["no_groups"]
    assert found["no_groups"].message == "0 of 20 images have a group."
    one = [*samples(), Sample("a/x.png", ("a",), None, "x")]
    assert find(one, expect_groups=True) == {}


def test_class_counts():
    unequal = [Sample(f"train/{i}.png", ("a" if i < 9 else "b",), "train") for i in range(27)]
    found = find([*unequal, *[Sample(f"val/{i}.png", ("b",), "val") for i in range(90)]])
    assert {name: item.message for name, item in found.items()} == {
        "imbalance": "2.0 times as many images of b (18) as of a (9) to train on.",
        "few_images": "1 class with fewer than 10 images to train on: a (9).",
        "missing_class": "1 class without an image: a in val.",
    }


def test_images_that_are_left_out_do_not_count():
    bad = {f"a/{i}.png": Report("unreadable", "damaged") for i in range(0, 10, 2)}
    assert list(find(samples(), reports=bad)) == ["unreadable", "imbalance", "few_images"]
    all_bad = {f"a/{i}.png": Report("unreadable", "damaged") for i in range(0, 20, 2)}
    assert list(find(samples(), reports=all_bad)) == ["unreadable", "missing_class"]


def test_long_lists_of_classes_are_cut():
    some = [Sample(f"{i}.png", (f"c{i:02}",), None) for i in range(30)]
    message = find(some)["few_images"].message
    assert message.endswith("c00 (1), c01 (1), c02 (1), c03 (1), c04 (1), 25 more.")


def test_an_image_counts_for_each_of_its_labels():
    some = [Sample("1.png", ("a", "b"), "train"), Sample("2.png", ("b",), "val")]
    assert count_classes(some, ("a", "b")) == {"train": {"a": 1, "b": 1}, "val": {"a": 0, "b": 1}}


def test_skipped_files_are_one_finding():
    skipped = [Skipped("x", "no image suffix"), Skipped("y", "a link"), Skipped("z", "a link")]
    found = find(samples(), skipped=skipped)
    message = "3 files or folders left out: a link (2), no image suffix (1)."
    assert found["skipped"].message == message
    assert found["skipped"].paths == ("x", "y", "z")


def test_errors_come_first_and_accepted_ones_are_marked():
    found = find(
        samples(),
        reports={"a/0.png": report(mode="L")},
        same=[("a/0.png", "b/1.png"), ("a/2.png", "a/4.png")],
        accept=["conflicting_labels"],
    )
    assert [(item.name, item.severity, item.accepted) for item in found.values()] == [
        ("conflicting_labels", "error", True),
        ("duplicates", "warning", False),
        ("mixed_modes", "info", False),
    ]
