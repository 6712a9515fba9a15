"""``finetune inspect``: what a newcomer reads before training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from finetune.cli import main

Capture = pytest.CaptureFixture[str]


def inspect(capsys: Capture, *words: str) -> str:
    """Return what is printed, on one line."""
    assert main(["inspect", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_counts_sizes_and_findings_are_shown(
    stripes: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "data"
    shutil.copytree(stripes, root)
    (root / "lying" / "bad [red].jpg").write_bytes(b"no image")
    shutil.copy(root / "lying" / "000.png", root / "standing" / "same.png")
    text = inspect(capsys, f"dataset.root={root}", f"output={tmp_path}", "model=nano")
    assert "lying 32 8 40" in text
    assert "bad [red].jpg" in text
    assert "error conflicting_labels" in text
    assert "A training would stop here." in text
    assert "dataset.accept=[conflicting_labels]" in text
    audit = json.loads((tmp_path / "data" / "audit.json").read_text())
    assert list(audit["unreadable"]) == ["lying/bad [red].jpg"]


def test_what_is_accepted_no_longer_stops(stripes: Path, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "data"
    shutil.copytree(stripes, root)
    shutil.copy(root / "lying" / "000.png", root / "standing" / "same.png")
    words = (f"dataset.root={root}", "output=null", "model=nano")
    text = inspect(capsys, *words, "dataset.accept=[conflicting_labels]")
    assert "accepted conflicting_labels" in text
    assert "would stop" not in text


def test_a_clean_folder_is_called_clean(stripes: Path, capsys: Capture) -> None:
    text = inspect(capsys, f"dataset.root={stripes}", "output=null", "model=nano")
    assert "Nothing is wrong" in text
    assert "Written" not in text


def test_the_contact_sheet_shows_what_training_sees(
    stripes: Path, tmp_path: Path, capsys: Capture, hash_tree: Callable[[Path], str]
) -> None:
    before = hash_tree(stripes)
    words = (f"dataset.root={stripes}", "model=nano", "model.image_size_px=48")
    for augmentation in ("none", "strong"):
        output = tmp_path / augmentation
        text = inspect(capsys, *words, f"output={output}", f"augmentation={augmentation}")
        assert "contact_sheet.png" in text
    sheets = [tmp_path / name / "stripes" / "contact_sheet.png" for name in ("none", "strong")]
    for sheet in sheets:
        with PIL.Image.open(sheet) as image:
            assert image.width > 8 * 48
            assert image.height > 4 * 48
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    assert hash_tree(stripes) == before


def test_an_x_ray_folder_shows_copies_imbalance_and_groups(
    real_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = real_data / "data" / "chest_xray"
    words = (f"dataset.root={root}", f"output={tmp_path}", r"dataset.group_pattern=person(\d+)_")
    text = inspect(capsys, *words, "dataset=medical")
    audit = json.loads((tmp_path / "chest_xray" / "audit.json").read_text())
    copies = sum(len(paths) - 1 for paths in audit["duplicates"])
    print(f"chest_xray: {copies} exact copies")
    assert copies == 32
    assert "imbalance" in text
    assert "no_groups" not in text


def test_a_messy_folder_shows_modes_suffixes_and_copies(
    real_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = real_data / "data" / "brain_mri"
    text = inspect(capsys, f"dataset.root={root}", f"output={tmp_path}")
    audit = json.loads((tmp_path / "brain_mri" / "audit.json").read_text())
    copies = sum(len(paths) - 1 for paths in audit["duplicates"])
    print(f"brain_mri: {copies} exact copies, modes {audit['modes']}")
    assert copies == 25
    assert set(audit["modes"]) == {"RGB", "L", "RGBA", "P"}
    wrong = next(item for item in audit["findings"] if item["name"] == "wrong_suffix")
    assert len(wrong["paths"]) == 6
    assert "RGBA" in text


def test_no_root_is_status_2(capsys: Capture) -> None:
    assert main(["inspect", "dataset=folder"]) == 2
    assert "dataset.root" in capsys.readouterr().err


def test_groups_that_a_given_split_parts_are_not_called_kept_together(
    stripes: Path, tmp_path: Path, capsys: Capture
) -> None:
    names = sorted(path.relative_to(stripes).as_posix() for path in stripes.rglob("*.png"))
    rows = [
        f"{name},{name[0]},{'train' if i % 4 else 'val'},{i // 2}" for i, name in enumerate(names)
    ]
    rows[5] = rows[5].rpartition(",")[0] + ","
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(["path,label,split,group", *rows]))
    words = (f"dataset.manifest={manifest}", f"dataset.root={stripes}", "output=null", "model=nano")
    assert "groups 40, 19 of them in several splits; 1 image without one" in inspect(capsys, *words)


@pytest.mark.parametrize("pattern", ["", "^", "(x?)$"])
def test_a_pattern_that_finds_nothing_is_refused(
    stripes: Path, capsys: Capture, pattern: str
) -> None:
    words = [f"dataset.root={stripes}", "output=null", "model=nano"]
    assert main(["inspect", *words, f"dataset.group_pattern={pattern}"]) == 2
    assert f"dataset.group_pattern: `{pattern}` matches no path" in capsys.readouterr().err


def test_a_medical_manifest_begins_in_its_own_folder(
    stripes: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stripes, "images")
    names = sorted(path.relative_to(tmp_path).as_posix() for path in Path.cwd().rglob("*.png"))
    rows = [f"{name},{Path(name).parent.name}" for name in names]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    words = ("dataset=medical", "dataset.manifest=labels.csv", "output=null", "model=nano")
    assert "lying 32 8 40" in inspect(capsys, *words)


@pytest.mark.parametrize("names", ["no_groups", "no_groups,imbalance", "[no_groups]"])
def test_findings_are_accepted_with_and_without_brackets(
    stripes: Path, capsys: Capture, names: str
) -> None:
    words = ("dataset=medical", f"dataset.root={stripes}", "output=null", "model=nano")
    assert "accepted no_groups" in inspect(capsys, *words, f"dataset.accept={names}")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dataset.fold=7", "dataset.fold: got 7, but folds is null; set dataset.folds=5."),
        ("dataset.metrics=[]", "dataset.metrics: got [], expected at least one."),
        ("dataset.metrics=f1", "dataset.metrics.0: got `f1`, expected one of accuracy,"),
        ("dataset.accept=all", "no_groups, mixed_modes, skipped.\n"),
        ("dataset.accept=null", "dataset.accept: got null, expected a list."),
    ],
)
def test_what_is_wrong_is_named_by_its_key(capsys: Capture, word: str, message: str) -> None:
    assert main(["inspect", "dataset.root=x", word]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_drawn_where_nobody_watches(stripes: Path, capsys: Capture) -> None:
    assert main(["inspect", f"dataset.root={stripes}", "output=null", "model=nano"]) == 0
    assert capsys.readouterr().out.startswith(str(stripes)[:20])
