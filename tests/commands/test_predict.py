"""``finetune predict``: rows in order, errors as rows."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest

import finetune
from finetune.cli import main


@pytest.fixture
def photos(stripes: Path, tmp_path: Path) -> Path:
    """Ten images, one of which is none, with a name that needs care."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(9):
        shutil.copy(stripes / "lying" / f"{index:03d}.png", folder / f"{index + 2}.png")
    (folder / "=1, 'bad'.png").write_bytes(b"no image")
    return folder


def test_one_row_per_image_in_natural_order_with_errors(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "out" / "labels.csv"
    words = ["predict", f"run={trained}", f"input={photos}", f"output={table}", "batch_size=4"]
    assert main(words) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    names = [Path(row["path"].removeprefix("'")).name for row in rows]
    assert names == [f"{index}.png" for index in range(2, 11)] + ["=1, 'bad'.png"]
    assert rows[-1]["label"] == ""
    assert "not an image" in rows[-1]["error"]
    for row in rows[:-1]:
        assert row["error"] == ""
        total = float(row["p_lying"]) + float(row["p_standing"])
        assert total == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(float(row["p_lying"]), float(row["p_standing"]))


def test_all_formats_and_the_python_door_give_one_answer(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        output = f"output={tmp_path / f'labels.{suffix}'}"
        pattern = f"input={photos}/[0-9]*.png"
        assert main(["predict", f"run={trained}", pattern, output, "workers=0"]) == 0
    with (tmp_path / "labels.csv").open() as file:
        from_csv = [float(row["probability"]) for row in csv.DictReader(file)]
    lines = (tmp_path / "labels.jsonl").read_text().splitlines()
    from_jsonl = [json.loads(line)["probability"] for line in lines]
    parquet = pyarrow.parquet.read_table(tmp_path / "labels.parquet")
    from_parquet = parquet.column("probability").to_pylist()
    paths = parquet.column("path").to_pylist()
    model = finetune.load_model(trained)
    from_python = [answer.probability for answer in model.predict(paths)]
    assert len(from_csv) == 9
    assert from_csv == pytest.approx(from_python, abs=1e-6)
    assert from_jsonl == pytest.approx(from_python, abs=1e-6)
    assert from_parquet == pytest.approx(from_python, abs=1e-6)


def test_without_output_the_table_goes_to_the_terminal(
    trained: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", f"run={trained}", f"input={photos / '2.png'}", "workers=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('"path","label","probability"')
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "input: missing"),
        (["input=nowhere"], "nowhere"),
        (["input=.", "output=labels.xls"], ".parquet"),
    ],
)
def test_mistakes_are_status_2(
    words: list[str],
    expected: str,
    trained: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos)
    assert main(["predict", f"run={trained}", *words]) == 2
    assert expected in capsys.readouterr().err


def test_a_damaged_model_is_refused(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    weights = run / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["predict", f"run={run}", f"input={photos}"]) == 2
    assert "SHA-256" in capsys.readouterr().err
