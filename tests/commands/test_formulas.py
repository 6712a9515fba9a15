"""``dataset=formulas``: from nothing to a training on what formulas draw."""

import csv
from pathlib import Path

import pytest

from finetune.cli import main

WORDS = (
    "dataset=formulas",
    "dataset.formula_images=1000",
    "dataset.formula_classes=20",
    "dataset.formula_side_px=16",
)
SCENES = ("dataset.formulas=scenes", "task=multilabel")


@pytest.mark.parametrize(("more", "num_classes"), [((), 20), (SCENES, 60)])
def test_a_training_draws_its_images_and_learns_all_names(
    more: tuple[str, ...],
    num_classes: int,
    tmp_path: Path,
    quick: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "drawn"
    words = [
        "train",
        *quick,
        *WORDS,
        *more,
        f"dataset.root={root}",
        f"runs={tmp_path / 'runs'}",
        "name=a",
    ]
    words += ["trainer.epochs=1", "trainer.batch_size=64", "model.image_size_px=32"]
    assert main(words) == 0
    with (root / "labels.csv").open() as file:
        names = {name for row in csv.DictReader(file) for name in row["label"].split("|")}
    assert len(names) == num_classes
    said = " ".join(capsys.readouterr().out.split())
    assert f"classes {len(names)}: {min(names)} (" in said, said[:300]
    assert (tmp_path / "runs" / "formulas" / "a" / "model.ts").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset.formulas=scenes"], "task: got multiclass, but scenes show several things"),
        (["dataset.formula_classes=800"], "got 1000, expected at least 16000, 20 for each"),
        (["dataset.formula_images=10"], "dataset.formula_images: got 10"),
        (["dataset.formulas=null"], "source formulas needs formulas"),
        (["dataset.root=null"], "dataset.root: missing"),
        (["dataset.formulas=fractal"], "dataset.formulas: got `fractal`"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"dataset.root={tmp_path / 'drawn'}"
    typed = [word for word in (*WORDS, root) if word.split("=")[0] != words[0].split("=")[0]]
    assert main(["inspect", *typed, *words, f"output={tmp_path / 'out'}"]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
