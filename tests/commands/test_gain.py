"""``evidence.gain``: the same training from random weights, and a line that compares them."""

import json
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.commands.gain import Gain


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (
            Gain("val_balanced_accuracy", 0.991, 0.5, 4),
            "val balanced accuracy 99.1 % with them, 50.0 % from random ones, 4 epochs each",
        ),
        (
            Gain("val_loss", 0.25, 1.5, 3),
            "val loss 0.250 with them, 1.500 from random ones, 3 epochs each",
        ),
        (
            Gain("val_accuracy", 1.0, 1.0, 1),
            "100.0 % with them, 100.0 % from random ones, 1 epoch ",
        ),
    ],
)
def test_a_gain_in_words(gain: Gain, said: str) -> None:
    assert said in str(gain)


@pytest.fixture(scope="module")
def gained(stripes: Path, tmp_path_factory: pytest.TempPathFactory, quick: tuple[str, ...]) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", f"dataset.root={stripes}", f"runs={runs}", "name=a", *quick]
    assert main([*words, "model.pretrained=true", "evidence.gain=true"]) == 0
    return runs / "stripes" / "a"


def test_both_trainings_are_in_the_figures(gained: Path) -> None:
    figures = json.loads((gained / "metrics.json").read_text())
    gain, candidates = figures["gain"], figures["candidates"]
    assert gain["monitor"] == figures["monitor"]
    assert gain["pretrained"] == candidates[figures["chosen"]][gain["monitor"]]
    assert 0 <= gain["random"] <= 1
    assert "probe" in candidates


def test_the_random_training_is_the_one_that_anybody_would_type(
    gained: Path, stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=b", *quick]
    assert main([*words, "model.pretrained=false"]) == 0
    row = json.loads((tmp_path / "stripes" / "b" / "metrics.json").read_text())
    gain = json.loads((gained / "metrics.json").read_text())["gain"]
    assert gain["random"] == row["candidates"]["fine-tuned"][gain["monitor"]]


def test_the_gain_is_the_last_line(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", *quick, "freeze=backbone"]
    assert main([*words, "model.pretrained=true", "evidence.gain=true"]) == 0
    last = capsys.readouterr().out.strip().split("\n")[-1]
    assert last.startswith("What the pretrained weights are worth: val ")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["model.pretrained=false"], ""),
        (["model.pretrained=true", "trainer.max_time_minutes=5"], "evidence.gain: not measured"),
    ],
)
def test_where_nothing_can_be_compared_nothing_is(
    more: list[str],
    said: str,
    stripes: Path,
    tmp_path: Path,
    quick: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=c", *quick]
    assert main([*words, "evidence.gain=true", *more]) == 0
    shown = capsys.readouterr().out
    assert said in shown
    assert "What the pretrained weights are worth" not in shown
    assert "gain" not in json.loads((tmp_path / "stripes" / "c" / "metrics.json").read_text())
