"""The page that a training ends with holds the numbers of the other files."""

import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path

import PIL.Image
import pytest
from huggingface_hub import ModelCard

from finetune.cli import main


def text_of(page: Path) -> str:
    """Give the words of a page, without its script and style."""
    html = page.read_text(encoding="utf-8")
    html = re.sub(r"<(script|style).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).replace("\xa0", " ").split())


def test_it_says_what_the_files_say(trained: Path) -> None:
    page = text_of(trained / "report.html")
    figures = json.loads((trained / "metrics.json").read_text())
    test = figures["test"]
    assert f"measured on {test['n']} images of test" in page
    ends = test["intervals"]["overall"]["accuracy"]
    assert f"{100 * test['accuracy']:.1f} %" in page
    assert f"{100 * ends['low']:.1f} % and {100 * ends['high']:.1f} %" in page
    record = json.loads((trained / "run.json").read_text())
    for key in ("optimizer.weight_decay", "scheduler.warmup_epochs"):
        assert key in page
    assert record["command"] in page
    with (trained / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    for row in epochs:
        assert f"{float(row['val_loss']):.3g}"[:4] in page
    assert "lying" in page
    assert "standing" in page


def test_it_is_one_small_file_that_loads_nothing(trained: Path) -> None:
    html = (trained / "report.html").read_text(encoding="utf-8")
    assert len(html) < 5_000_000
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"(?:src|href)=[\"']?https?:", html)


def test_the_model_card_is_beside_it(trained: Path) -> None:
    card = ModelCard.load(trained / "README.md")
    figures = json.loads((trained / "metrics.json").read_text())
    values = {
        (result.dataset_split, result.metric_type): result.metric_value
        for result in card.data.eval_results or []
    }
    assert values["test", "accuracy"] == pytest.approx(figures["test"]["accuracy"], abs=1e-6)


def test_another_folder_gets_a_page_of_its_own(
    trained: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    output = tmp_path / "elsewhere.json"
    words = [f"run={run}", f"root={stripes}", f"output={output}", "workers=0"]
    assert main(["evaluate", *words]) == 0
    page = text_of(tmp_path / "elsewhere.html")
    assert "measured on 80 images of stripes" in page
    assert "None of these images belongs to the training" in page
    assert "elsewhere.html" in capsys.readouterr().out.replace("\n", "")
    assert main(["evaluate", *words, "evidence=none", f"output={tmp_path / 'b.json'}"]) == 0
    assert not (tmp_path / "b.html").exists()


def test_a_probe_doubts_labels_and_shows_neighbours(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    """Two lying stripes are labelled as standing: one to train on, one to validate on."""
    root = Path(shutil.copytree(stripes, tmp_path / "data"))
    for number in (0, 1, 2):
        (root / "lying" / f"{number:03d}.png").rename(root / "standing" / f"wrong{number}.png")
    words = ["train", f"dataset.root={root}", f"runs={tmp_path}", "name=a", *quick]
    more = ["freeze=backbone", "evidence=full", "dataset.accept=[]"]
    assert main([*words, *more]) == 0
    run = tmp_path / "data" / "a"
    with (run / "label_issues.csv").open(newline="") as file:
        issues = list(csv.DictReader(file))
    found = {Path(row["path"]).name for row in issues}
    planted = {f"wrong{number}.png" for number in (0, 1, 2)}
    assert len(found & planted) >= 2
    for row in issues:
        assert row["split"] in ("train", "val")
        assert row["label"] != row["suggested"]
        assert 0 < float(row["score"]) <= 1
    page = text_of(run / "report.html")
    assert "Perhaps mislabelled" in page


def test_several_labels_have_a_page_too(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    rows = [("path", "label")]
    for place, path in enumerate(sorted(stripes.rglob("*.png"))):
        labels = [path.parent.name] + (["even"] if place % 2 else [])
        rows.append((str(path.relative_to(stripes)), "|".join(labels)))
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(",".join(row) for row in rows) + "\n")
    words = [f"dataset.manifest={manifest}", f"dataset.root={stripes}", f"runs={tmp_path}"]
    more = [*quick, "name=a", "trainer.epochs=1", "task=multilabel", "evidence=full"]
    assert main(["train", *words, *more]) == 0
    page = text_of(tmp_path / "labels" / "a" / "report.html")
    assert "mean average precision" in page
    assert "Prediction sets are for one class per image." in page


def test_an_image_that_is_gone_leaves_a_gap(trained: Path, stripes: Path, tmp_path: Path) -> None:
    """The page is about what was measured; a picture that cannot be read is left out."""
    from finetune.commands.galleries import Eye
    from finetune.exports.bundle import load_model

    PIL.Image.new("RGB", (40, 30), "red").save(tmp_path / "there.png")
    eye = Eye(load_model(trained), tmp_path)
    assert eye.draw("there.png") is not None
    assert eye.draw("gone.png") is None
    drawn = eye.explain(["gone.png", "there.png"], [0, 1])
    assert drawn[0] is None
