"""``task=multilabel`` from a manifest to a deployed file."""

import csv
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import finetune
from finetune.cli import main

LABELS = ("red", "green", "blue")


def write_images(folder: Path, count: int) -> list[tuple[str, ...]]:
    """Write images whose labels say which of their channels are bright; give the labels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    every = []
    for index in range(count):
        shown = [bool(index >> place & 1) for place in range(len(LABELS))]
        image = rng.normal(np.where(shown, 190, 60), 20, (32, 32, 3))
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
        every.append(tuple(name for name, yes in zip(LABELS, shown, strict=True) if yes))
    return every


def write_manifest(path: Path, labels: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([f"images/{i}.png", "|".join(names)] for i, names in enumerate(labels))
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    return write_manifest(folder / "labels.csv", write_images(folder / "images", 64))


@pytest.fixture(scope="module")
def coloured(
    manifest: Path, quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the run directory of a training on the colours; do not change it."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", "task=multilabel", f"dataset.manifest={manifest}", "name=first", *quick]
    words += ["trainer.batch_size=8", f"runs={runs}"]
    words += ["dataset.metrics=[accuracy,auroc,mean_average_precision]"]
    # By rank alone, the labels are right before any probability is.
    words += ["dataset.monitor=macro_f1"]
    assert main(words) == 0
    (run,) = (path.parent for path in runs.glob("*/first/model.json"))
    return run


def test_the_labels_are_learnt_and_measured(coloured: Path) -> None:
    figures = json.loads((coloured / "metrics.json").read_text())
    val = figures["val"]
    assert figures["monitor"] == "val_macro_f1"
    assert val["mean_average_precision"] > 0.9
    assert val["macro_f1"] > 0.9
    assert [row["name"] for row in val["per_class"]] == ["blue", "green", "red"]
    with (coloured / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    columns = {"val_accuracy", "val_macro_f1", "val_auroc", "val_mean_average_precision"}
    assert columns <= set(rows[0])
    best = max(float(row["val_macro_f1"]) for row in rows)
    assert best == pytest.approx(val["macro_f1"], abs=1e-4)
    assert json.loads((coloured / "model.json").read_text())["task"] == "multilabel"


def test_an_image_without_labels_is_an_image_like_others(coloured: Path) -> None:
    with (coloured / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 64
    assert sum(row["label"] == "" for row in rows) == 8
    assert sum(row["label"].count("|") == 2 for row in rows) == 8


def test_predictions_name_every_label_and_none(
    coloured: Path, manifest: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    words = ["predict", f"run={coloured}", f"input={manifest.parent / 'images'}", "workers=0"]
    assert main([*words, f"output={table}"]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    with manifest.open() as file:
        true = {
            row["path"]: set(filter(None, row["label"].split("|"))) for row in csv.DictReader(file)
        }
    right = 0
    for row in rows:
        given = [name for name in ("blue", "green", "red") if float(row[f"p_{name}"]) >= 0.5]
        assert row["label"] == "|".join(given)
        right += set(given) == true[f"images/{Path(row['path']).name}"]
    assert right > 0.9 * 64
    answers = finetune.load_model(coloured).predict([Path(row["path"]) for row in rows])
    assert [answer.label for answer in answers] == [row["label"] for row in rows]


def test_the_exported_file_gives_the_same_labels(coloured: Path, manifest: Path) -> None:
    check = json.loads((coloured / "model.ts.check.json").read_text())
    assert check["images"] == check["same_labels"] > 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.load")
        module = torch.jit.load(str(coloured / "model.ts"))  # type: ignore[no-untyped-call]
    path = manifest.parent / "images" / "7.png"
    with PIL.Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    (answer,) = finetune.load_model(coloured).predict([path])
    expected = list(answer.probabilities.values())
    assert module(pixels)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_another_manifest_is_measured(coloured: Path, manifest: Path, tmp_path: Path) -> None:
    with manifest.open() as file:
        lines = file.readlines()
    other = manifest.with_name("other.csv")
    other.write_text("".join(lines[:17]))
    output = tmp_path / "figures.json"
    words = ["evaluate", f"run={coloured}", f"manifest={other}", f"output={output}", "workers=0"]
    assert main(words) == 0
    assert json.loads(output.read_text())["n"] == 16
    assert output.with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset.balance=logit_adjustment"], "one class per image"),
        (["dataset.balance=sampler"], "one class per image"),
    ],
)
def test_what_needs_one_class_per_image_is_refused(
    words: list[str],
    expected: str,
    manifest: Path,
    quick: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = ["train", "task=multilabel", f"dataset.manifest={manifest}", f"runs={tmp_path}"]
    assert main([*first, *quick, *words]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
