"""``finetune evaluate`` on a real run directory."""

import json
import shutil
from pathlib import Path

import pytest

from finetune.cli import main


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_split_of_the_run_gives_the_metrics_of_the_training(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("val", "test"):
        assert main(["evaluate", f"run={run}", f"split={split}", "workers=0"]) == 0
        evaluation = json.loads((run / f"evaluation_{split}.json").read_text())
        assert {key: evaluation[key] for key in metrics[split]} == metrics[split]
        assert (run / f"evaluation_{split}.png").is_file()


def test_another_folder_is_mapped_by_class_name(run: Path, stripes: Path, tmp_path: Path) -> None:
    """A folder with the second class of the model alone, whose index there would be 0."""
    root = tmp_path / "other"
    shutil.copytree(stripes / "standing", root / "standing")
    output = tmp_path / "figures.json"
    words = ["evaluate", f"run={run}", f"root={root}", f"output={output}", "workers=0"]
    assert main(words) == 0
    figures = json.loads(output.read_text())
    assert figures["n"] == 40
    assert figures["accuracy"] >= 0.9
    assert figures["absent_classes"] == ["lying"]
    assert figures["specificity"] is None


def test_a_class_that_the_model_does_not_know_is_refused(
    run: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "other"
    shutil.copytree(stripes / "standing", root / "standng")
    shutil.copytree(stripes / "lying", root / "lying")
    assert main(["evaluate", f"run={run}", f"root={root}", "workers=0"]) == 2
    message = capsys.readouterr().err
    assert '"standng"' in message
    assert "Did you mean `standing`?" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run=nowhere"], "nowhere"),
        (["split=vall"], "train, val, test"),
        (["batch_size=0"], "batch_size"),
    ],
)
def test_mistakes_are_status_2(
    words: list[str], expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *([] if "run=" in words[0] else [f"run={run}"]), *words]) == 2
    assert expected in capsys.readouterr().err


def test_a_run_without_a_test_split_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = run / "split.csv"
    split.write_text(split.read_text().replace(",test", ",val"))
    assert main(["evaluate", f"run={run}", "split=test"]) == 2
    assert "no image there" in capsys.readouterr().err


def test_an_unfinished_run_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model.json").unlink()
    assert main(["evaluate", f"run={run}"]) == 2
    assert "training has ended" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_left_out_and_named(
    run: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "other"
    shutil.copytree(stripes, root)
    (root / "lying" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    output = tmp_path / "figures.json"
    assert main(["evaluate", f"run={run}", f"root={root}", f"output={output}"]) == 0
    figures = json.loads(output.read_text())
    assert list(figures["left_out"]) == ["lying/broken.png"]
    assert figures["n"] == 80
    text = " ".join(capsys.readouterr().out.split())
    assert "Left out, as they cannot be read: 1 of 81; the first, lying/broken.png" in text


def test_a_folder_without_a_readable_image_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "other"
    (root / "lying").mkdir(parents=True)
    (root / "lying" / "broken.png").write_bytes(b"no image")
    assert main(["evaluate", f"run={run}", f"root={root}"]) == 2
    assert "none of the 1 images can be read" in capsys.readouterr().err
