"""``finetune predict``: rows in order, errors as rows."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import torch

import finetune
from finetune.cli import main
from finetune.commands import predict as command
from finetune.commands import predictor
from finetune.exports.bundle import load_model, set_evidence
from finetune.exports.description import PredictionSets, read_description
from finetune.exports.exported import Exported
from finetune.exports.torchscript import save_torchscript
from finetune.prediction.predict import Prediction
from finetune.prediction.views import make_views


@pytest.fixture
def photos(stripes: Path, tmp_path: Path) -> Path:
    """Ten images, one of which is none, with a name that needs care."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(9):
        shutil.copy(stripes / "lying" / f"{index:03d}.png", folder / f"{index + 2}.png")
    (folder / "=1, 'bad'.png").write_bytes(b"no image")
    return folder


SETS = PredictionSets(coverage=0.9, limit=0.8, penalty=0, free_ranks=1, images=20)


@pytest.fixture
def calibrated(trained: Path, photos: Path, tmp_path: Path) -> Path:
    """Return a model that is warm, has sets, and abstains from some of the nine photos."""
    folder = tmp_path / "calibrated"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(trained / name, folder)
    set_evidence(folder, temperature=3, sets=None, abstain_below=None)
    answers = load_model(folder).predict(sorted(photos.glob("[0-9]*.png")))
    sure = sorted(answer.probability for answer in answers)
    assert sure[8] - sure[0] > 1e-3
    # Between two of them, so that a rounding changes nothing.
    below, above = max(pairwise(sure), key=lambda pair: pair[1] - pair[0])
    middle = (below + above) / 2
    sets = SETS.model_copy(update={"limit": middle})
    set_evidence(folder, temperature=3, sets=sets, abstain_below=middle)
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


def predict(trained: Path, *words: str) -> int:
    return main(["predict", f"run={trained}", "workers=0", "batch_size=4", *words])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_manifests_and_standard_input_give_the_rows_of_a_folder(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(trained, f"input={photos}", f"output={tmp_path / 'folder.csv'}") == 0
    expected = read(tmp_path / "folder.csv")
    names = [row["path"].removeprefix("'") for row in expected]
    manifest = tmp_path / "list.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["image"], *([Path(name).relative_to(tmp_path)] for name in names)])
    words = [f"input={manifest}", "path_column=image", f"output={tmp_path / 'manifest.csv'}"]
    assert predict(trained, *words) == 0
    assert read(tmp_path / "manifest.csv") == expected
    lines = io.TextIOWrapper(io.BytesIO("\n".join(names).encode()))
    monkeypatch.setattr("sys.stdin", lines)
    assert predict(trained, "input=-", f"output={tmp_path / 'stdin.csv'}") == 0
    assert read(tmp_path / "stdin.csv") == expected


def test_columns_are_those_asked_for(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    words = [f"input={photos}", f"output={table}", "probabilities=false", "top_k=5"]
    assert predict(trained, *words, "abstain=1", "threshold=0.999999") == 0
    rows = read(table)
    top = ["label_1", "probability_1", "label_2", "probability_2"]
    assert list(rows[0]) == ["path", "label", "probability", "abstained", *top, "error"]
    for row in rows[:-1]:
        assert row["label"] == "lying"  # the first of two, unless the second is nearly certain
        assert {row["label_1"], row["label_2"]} == {"lying", "standing"}
        assert float(row["probability_1"]) >= float(row["probability_2"])
        own = row["probability_1"] if row["label_1"] == "lying" else row["probability_2"]
        assert row["probability"] == own
        assert row["abstained"] == ("true" if float(own) < 1 else "false")
    assert [rows[-1][name] for name in ("label", "abstained", *top)] == [""] * 6
    abstained = sum(row["abstained"] == "true" for row in rows)
    assert f"{abstained} abstained, 1 of them unreadable" in capsys.readouterr().err


@pytest.mark.parametrize("augment", ["flip", "crops"])
def test_views_are_averaged(trained: Path, photos: Path, tmp_path: Path, augment: str) -> None:
    table = tmp_path / "labels.csv"
    words = [f"input={photos / '2.png'}", f"output={table}", f"augment={augment}"]
    assert predict(trained, *words) == 0
    model = finetune.load_model(trained)
    pixels = np.asarray(PIL.Image.open(photos / "2.png").convert("RGB"))
    resized = model.preprocess.resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    views = list(make_views(resized, augment))  # type: ignore[arg-type]
    expected = torch.cat([model.probabilities(view) for view in views]).mean(0)
    (row,) = read(table)
    got = [float(row["p_lying"]), float(row["p_standing"])]
    assert got == pytest.approx(expected.tolist(), abs=1e-6)


def test_features_are_what_the_head_reads(trained: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("f.npy", "f.parquet"):
        words = [f"input={photos}", f"output={tmp_path / 'a.csv'}"]
        assert predict(trained, *words, f"output_features={tmp_path / name}") == 0
    assert predict(trained, f"input={photos}", f"output={tmp_path / 'b.csv'}") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    features = np.load(tmp_path / "f.npy")
    rows = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist()
    assert np.isnan(features[-1]).all()
    assert rows[-1]["features"] is None
    np.testing.assert_array_equal(features[:-1], [row["features"] for row in rows[:-1]])
    model = finetune.load_model(trained)
    numbers = model.classifier.head(torch.from_numpy(features[:-1])).softmax(1)
    expected = [float(row["p_standing"]) for row in read(tmp_path / "a.csv")[:-1]]
    assert numbers[:, 1].tolist() == pytest.approx(expected, abs=1e-5)


def test_several_processes_give_the_table_of_one(
    calibrated: Path, photos: Path, tmp_path: Path
) -> None:
    for count in (1, 2):
        output = f"output={tmp_path / f'{count}.csv'}"
        words = [f"run={calibrated}", f"input={photos}", "batch_size=3", "sets=true", output]
        assert main(["predict", *words, f"processes={count}", f"workers={count - 1}"]) == 0
    assert (tmp_path / "2.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()
    assert '"true","lying|standing"' in (tmp_path / "1.csv").read_text()


def test_a_killed_prediction_goes_on_to_the_same_bytes(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, whole = tmp_path / "t.csv", tmp_path / "whole.csv"
    images = sorted(photos.iterdir())
    paths = tmp_path / "paths.jsonl"
    lines = [json.dumps({"path": str(images[index % 10])}) for index in range(407)]
    paths.write_text("\n".join(lines))
    words = [f"run={trained}", "workers=0", "batch_size=4", "abstain=0.9"]
    words = [sys.executable, "-m", "finetune", "predict", *words, "input=-", f"output={table}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        fed = "".join(f"{images[index % 10]}\n" for index in range(303))
        process.stdin.write(fed.encode())
        process.stdin.flush()
        part, start = tmp_path / "t.csv.part", time.monotonic()
        while not part.is_file() or part.stat().st_size < 9000:
            assert process.poll() is None
            assert time.monotonic() - start < 100
            time.sleep(0.02)
        process.kill()
    assert not table.exists()
    os.truncate(part, part.stat().st_size - 5)  # within a row, as a full disk would
    same = [f"input={paths}", f"output={table}", "abstain=0.9"]
    assert predict(trained, *same, "resume=true", "batch_size=8") == 2
    assert "begun with batch_size=4" in capsys.readouterr().err
    assert predict(trained, *same, "resume=true") == 0
    message = capsys.readouterr().err
    assert "Going on after" in message
    assert "407 rows" in message
    assert "40 of them unreadable" in message
    assert predict(trained, *same[::2], f"output={whole}") == 0
    assert table.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part*"))


def test_an_interruption_says_how_to_go_on(
    trained: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[Prediction]:
        yield Prediction(photos / "2.png", None, None, (), "damaged")
        raise KeyboardInterrupt

    table = tmp_path / "t.csv"
    with monkeypatch.context() as patch:
        patch.setattr(command, "predict_paths", interrupted)
        assert predict(trained, f"input={photos}", f"output={table}") == 130
    message = capsys.readouterr().err
    assert f"Stopped after 1 rows, which are in {table}.part" in message
    assert "resume=true" in message
    left = (tmp_path / "t.csv.part").read_bytes()
    assert predict(trained, f"input={photos}", f"output={table}") == 2
    assert "resume=true goes on from there, resume=false begins anew" in capsys.readouterr().err
    assert (tmp_path / "t.csv.part").read_bytes() == left
    # One row is less than a batch: nothing is kept of it, and all is done again.
    assert predict(trained, f"input={photos}", f"output={table}", "resume=true") == 0
    assert "Going on after 0 rows" in capsys.readouterr().err
    assert len(read(table)) == 10


def fake_export(path: Path, *, trust: bool) -> Exported:
    assert trust

    def answer(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        sizes.append(images.shape)
        red = images[:, 0].mean((1, 2), dtype=np.float64).astype(np.float32) / 255
        return np.stack([red, 1 - red], 1)

    sizes: list[tuple[int, ...]] = []
    description = read_description(path.with_name("model.json"))
    return Exported(path, description, answer)


def test_an_exported_file_gets_the_images_as_they_are(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "load_exported", fake_export)
    shutil.copy(trained / "model.json", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"an export")
    folder = tmp_path / "in"
    folder.mkdir()
    for index, size in enumerate([(9, 5), (5, 9), (9, 5), (7, 7)]):
        PIL.Image.new("RGB", size, (50 * index, 0, 255)).save(folder / f"{index}.png")
    words = [f"run={tmp_path / 'model.onnx'}", "trust=true", f"input={folder}"]
    for batch_size in ("auto", "4"):
        table = tmp_path / f"{batch_size}.csv"
        run = ["predict", *words, f"batch_size={batch_size}", f"output={table}"]
        assert main([*run, "workers=0"]) == 0
        got = [float(row["p_lying"]) for row in read(table)]
        assert got == pytest.approx([50 * index / 255 for index in range(4)], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["augment=flip"], "augment: got flip, but"),
        (["output_features=f.npy"], "output_features: got a file, but"),
    ],
)
def test_views_and_features_need_a_bundle(
    words: list[str],
    expected: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ts").touch()
    assert main(["predict", "run=model.ts", f"input={photos}", *words]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["input=https://x.org/a.jpg"], "`https://x.org/a.jpg` is a URL"),
        (["input=.", "resume=true"], "resume: got output=None, expected a file that ends in .csv"),
        (["input=.", "resume=true", "output=t.parquet"], "half a Parquet file cannot be read"),
        (["input=.", "resume=true", "output=t.csv", "output_features=f.npy"], "does not go with"),
        (["input=.", "output=t.csv", "output_features=f.csv"], ".npy or .parquet"),
        (["input=.", "output=a.parquet", "output_features=a.parquet"], "which is output too"),
        (["input=list.csv", "output=list.csv"], "which is input too"),
        (["input=.", "threshold=2"], "threshold"),
    ],
)
def test_mistakes_of_the_longer_kind_leave_nothing_behind(
    words: list[str],
    expected: str,
    trained: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos)
    before = sorted(photos.iterdir())
    assert predict(trained, *words) == 2
    assert expected in capsys.readouterr().err
    assert sorted(photos.iterdir()) == before


def test_a_failure_before_the_first_row_leaves_no_part(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"http://x.org/a.jpg\n"))
    monkeypatch.setattr("sys.stdin", lines)
    assert predict(trained, "input=-", f"output={tmp_path / 't.csv'}") == 2
    assert not list(tmp_path.iterdir())


def pick(path: Path, *columns: str) -> list[dict[str, str]]:
    return [{name: row[name] for name in columns} for row in read(path)]


def test_the_models_own_threshold_and_sets_are_used(
    calibrated: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        words = [f"input={photos}", f"output={tmp_path / f't.{suffix}'}", "sets=true"]
        assert predict(calibrated, *words) == 0
    rows = read(tmp_path / "t.csv")
    names = ["path", "label", "probability", "abstained", "prediction_set"]
    assert list(rows[0])[:5] == names
    expected = load_model(calibrated).predict([row["path"] for row in rows[:-1]])
    assert {answer.abstained for answer in expected} == {True, False}
    for row, answer in zip(rows[:-1], expected, strict=True):
        assert row["abstained"] == ("true" if answer.abstained else "false")
        assert row["prediction_set"] == "|".join(answer.prediction_set or ())
        # The limit equals the threshold: of the surer ones, the second class is not in the set.
        assert row["prediction_set"].count("|") == bool(answer.abstained)
    assert (rows[-1]["abstained"], rows[-1]["prediction_set"]) == ("", "")
    abstained = sum(bool(answer.abstained) for answer in expected)
    assert f"{abstained} abstained, 1 of them unreadable" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    sets = [answer.prediction_set for answer in expected]
    assert [line["prediction_set"] for line in lines] == [*map(list, sets), None]
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.column("prediction_set").to_pylist() == [*map("|".join, sets), None]
    assert table.column("abstained").to_pylist() == [*(a.abstained for a in expected), None]


def test_auto_marks_nothing_where_the_threshold_was_not_found_so(
    calibrated: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    for words, is_marked, is_said in (
        ([], True, False),
        (["abstain=null"], False, False),
        (["threshold=0.3"], False, True),
        (["augment=flip"], False, True),
        (["threshold=0.3", "abstain=0.9"], True, False),
    ):
        assert predict(calibrated, f"input={photos}", f"output={table}", *words) == 0
        assert ("abstained" in read(table)[0]) == is_marked
        message = capsys.readouterr().err
        assert ("No answer is marked as abstained" in message) == is_said


def test_a_model_of_before_marks_nothing_and_has_no_sets(
    calibrated: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = json.loads((calibrated / "model.json").read_text())
    for key in ("sets", "abstain_below", "temperature"):
        del description[key]
    (calibrated / "model.json").write_text(json.dumps(description))
    table = tmp_path / "t.csv"
    assert predict(calibrated, f"input={photos}", f"output={table}") == 0
    assert {"abstained", "prediction_set"}.isdisjoint(read(table)[0])
    assert "abstained" not in capsys.readouterr().err
    other = tmp_path / "other.csv"
    assert predict(calibrated, f"input={photos}", f"output={other}", "sets=true") == 2
    message = capsys.readouterr().err
    assert "ConfigError: sets: got true, but" in message
    assert "evidence=full" in message
    assert not list(tmp_path.glob("other*"))


def test_an_exported_file_knows_what_its_model_was_calibrated_to(
    calibrated: Path, photos: Path, tmp_path: Path
) -> None:
    save_torchscript(load_model(calibrated), tmp_path / "model.ts", dtype=torch.float32)
    for run in (calibrated, tmp_path / "model.ts"):
        output = f"output={tmp_path / run.name}.csv"
        words = [f"input={photos}", output, "sets=true", "batch_size=1", "trust=true"]
        assert predict(run, *words) == 0
    columns = ("path", "label", "abstained", "prediction_set")
    bundles = pick(tmp_path / "calibrated.csv", *columns)
    assert pick(tmp_path / "model.ts.csv", *columns) == bundles
    assert {row["abstained"] for row in bundles} == {"true", "false", ""}


def test_a_table_goes_on_with_the_sets_that_it_began_with_alone(
    calibrated: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, table = tmp_path / "whole.csv", tmp_path / "t.csv"
    words = [f"input={photos}", "sets=true"]
    assert predict(calibrated, *words, f"output={whole}") == 0
    usual = command.predict_paths

    def interrupted(*arguments: Any) -> Iterator[Prediction]:
        yield from islice(usual(*arguments), 6)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "predict_paths", interrupted)
        assert predict(calibrated, *words, f"output={table}") == 130
    resume = [f"output={table}", "resume=true"]
    capsys.readouterr()
    for changes, expected in (
        (["sets=false"], "begun with sets=true, got sets=false"),
        (["abstain=null"], "got abstain=null"),
    ):
        assert predict(calibrated, *words[:1], *resume, "sets=true", *changes) == 2
        assert expected in capsys.readouterr().err
    own = read_description(calibrated / "model.json")
    set_evidence(calibrated, temperature=2, sets=own.sets, abstain_below=own.abstain_below)
    assert predict(calibrated, *words, *resume) == 2
    assert "begun with another model" in capsys.readouterr().err
    set_evidence(calibrated, temperature=3, sets=own.sets, abstain_below=own.abstain_below)
    assert predict(calibrated, *words, *resume) == 0
    assert "Going on after 4 rows" in capsys.readouterr().err
    assert table.read_bytes() == whole.read_bytes()
