"""Comparing runs, and training several backbones to compare them."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.cli import main
from finetune.commands.entrants import find_runs, short_names
from finetune.errors import DataError, FinetuneError, RunError
from finetune.run import RunDirectory

OUTPUTS = ("comparison.csv", "comparison.html", "comparison.json")


@pytest.fixture(scope="module")
def compared(
    stripes: Path, tmp_path_factory: pytest.TempPathFactory, quick: tuple[str, ...]
) -> Path:
    """Return a folder with the output of a comparison of two backbones, and their runs."""
    folder = tmp_path_factory.mktemp("compared")
    words = [word for word in quick if not word.startswith("model=")]
    words += [f"dataset.root={stripes}", f"runs={folder / 'runs'}", "evidence=none"]
    words += ["dataset.test_fraction=0.2", "model.pretrained=false", "name=a"]
    assert compare("backbones=[nano,test_resnet]", *words, f"output={folder / 'out'}") == 0
    return folder


@pytest.fixture(scope="module")
def runs(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two runs, `good` and `poor`, whose names say nothing of the figures."""
    folder = tmp_path_factory.mktemp("data") / "stripes"
    shutil.copytree(compared / "runs/stripes/a_nano", folder / "good")
    shutil.copytree(compared / "runs/stripes/a_test_resnet", folder / "poor")
    return folder


@pytest.fixture
def copies(runs: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs, to be changed."""
    return Path(shutil.copytree(runs, tmp_path / "stripes"))


def compare(*words: object) -> int:
    quick = ("latency=false", "resamples=200")
    named = [str(word) for word in words]
    return main(["compare", *named, *(w for w in quick if w.split("=")[0] not in "".join(named))])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert compare(*words) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("\n") == 1
    return message


# --- runs that are there ----------------------------------------------------------------------


def test_two_runs_are_ranked_and_tested_on_the_same_images(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = (runs / "poor", runs / "good", f"output={output}", "price_per_hour=3600")
    assert compare(*words, "latency=true") == 0
    assert sorted(path.name for path in output.iterdir()) == list(OUTPUTS)
    found = json.loads((output / "comparison.json").read_text())
    assert found["split"] == "test"  # as both have it
    contenders = {one["name"]: one for one in found["contenders"]}
    assert contenders["good"]["parameters"] == 892_978  # of nano, with a head for two classes
    figures = {
        name: json.loads((runs / name / "metrics.json").read_text()) for name in ("good", "poor")
    }
    for contender in contenders.values():
        own = figures[contender["name"]]
        for key, value in contender["metrics"].items():
            assert value["value"] == pytest.approx(own["test"][key], abs=1e-6)
            assert value["low"] is None or value["low"] <= value["value"] <= value["high"]
        assert contender["images"] == 16
        assert contender["latency_ms"] > 0
        # A price of one a second.
        assert contender["cost"] == pytest.approx(contender["seconds"])
    best, other = (one["name"] for one in found["contenders"])
    values = [contenders[name]["metrics"]["accuracy"]["value"] for name in (best, other)]
    assert values == sorted(values, reverse=True)
    (pair,) = found["pairs"]
    assert (pair["best"], pair["other"], pair["images"]) == (best, other, 16)
    rows = {
        name: list(csv.DictReader((runs / name / "predictions_test.csv").read_text().splitlines()))
        for name in ("good", "poor")
    }
    right = {
        name: [row["label"] == Path(row["path"]).parent.name for row in table]
        for name, table in rows.items()
    }
    together = list(zip(right[best], right[other], strict=True))
    assert pair["only_best"] == together.count((True, False))
    assert pair["only_other"] == together.count((False, True))
    assert pair["text"] in capsys.readouterr().out
    assert pair["text"] in (output / "comparison.html").read_text()


def test_the_table_has_a_row_for_each_run(runs: Path, tmp_path: Path) -> None:
    assert compare(runs / "good", runs / "poor", f"output={tmp_path}", "split=val") == 0
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert {row["split"] for row in rows} == {"val"}
    assert float(rows[0]["accuracy"]) >= float(rows[1]["accuracy"])
    assert rows[0]["p"] == ""
    assert 0 <= float(rows[1]["p"]) <= float(rows[1]["p_corrected"]) <= 1


def test_a_run_against_its_copy_cannot_be_told_apart(copies: Path, tmp_path: Path) -> None:
    shutil.copytree(copies / "good", copies / "twin")
    assert compare(copies / "good", copies / "twin", f"output={tmp_path / 'out'}") == 0
    (pair,) = json.loads((tmp_path / "out/comparison.json").read_text())["pairs"]
    assert pair["p"] == 1
    assert pair["standing"] == "equal"
    assert pair["advantage"] == {"value": 0, "low": None, "high": None}
    assert "cannot be told apart: neither leads on the same 16 images" in pair["text"]


def test_a_folder_or_a_pattern_stands_for_its_runs(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copies / "notes.txt").touch()
    (copies / "latest").symlink_to("good")
    (copies / "poor/model.ts").unlink()  # nobody needs it here
    shutil.copytree(copies / "good", copies / "stopped")
    (copies / "stopped/metrics.json").unlink()
    for number, words in enumerate(([copies], [copies / "*"], [f"runs=[{copies}/*]"])):
        output = tmp_path / str(number)
        assert compare(*words, f"output={output}") == 0
        found = json.loads((output / "comparison.json").read_text())
        assert {one["name"] for one in found["contenders"]} == {"good", "poor"}
    said = capsys.readouterr().out.replace("\n", "")
    assert "latest: listed already." in said
    assert "notes.txt: a file." in said
    assert "stopped: unfinished, it has no metrics.json." in said


def test_other_images_are_said_and_not_tested(copies: Path, tmp_path: Path) -> None:
    words = (copies / "good", copies / "poor", f"output={tmp_path / 'out'}")
    record = copies / "poor/run.json"
    values = json.loads(record.read_text())
    table = copies / "poor/predictions_test.csv"
    table.write_text(table.read_text().replace(values["data"], "/elsewhere"))
    record.write_text(json.dumps(values | {"data": "/elsewhere"}))
    assert compare(*words) == 0
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["pairs"][0]["p"] is None
    assert found["pairs"][0]["standing"] == "unknown"
    assert "no image is the same for both" in found["pairs"][0]["text"]
    assert any("different images" in line for line in found["warnings"])


def test_another_division_is_tested_only_on_enough_common_images(
    copies: Path, tmp_path: Path
) -> None:
    def keep(count: int) -> None:
        """Leave the poor run so many images of its test split."""
        for name in ("split.csv", "predictions_test.csv"):
            lines = (runs_of_poor / name).read_text().splitlines(keepends=True)
            is_test = [name != "split.csv" or ",test" in line for line in lines]
            seen, kept = 0, []
            for number, (line, is_one) in enumerate(zip(lines, is_test, strict=True)):
                seen += is_one and number > 0
                if number == 0 or not is_one or seen <= count:
                    kept.append(line)
            (copies / "poor" / name).write_text("".join(kept))

    runs_of_poor = Path(shutil.copytree(copies / "poor", tmp_path / "whole"))
    for count, has_p in ((12, True), (5, False)):
        keep(count)
        output = tmp_path / f"out{count}"
        assert compare(copies / "good", copies / "poor", f"output={output}") == 0
        found = json.loads((output / "comparison.json").read_text())
        (pair,) = found["pairs"]
        assert pair["images"] == count
        assert (pair["p"] is not None) == has_p
        assert any("divided the images differently" in line for line in found["warnings"])


# --- what cannot be compared ------------------------------------------------------------------


def test_less_than_two_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"output={tmp_path / 'out'}"
    assert "got 0 finished runs, expected at least two" in refused(capsys, output)
    assert "got 1 finished run, expected" in refused(capsys, runs / "good", output)
    assert "no such folder" in refused(capsys, runs / "godo", runs / "good", output)
    assert "not a run directory" in refused(capsys, tmp_path, runs / "good", output)


def test_what_differs_is_named(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = copies / "poor/model.json"
    words = (copies / "good", copies / "poor", f"output={tmp_path / 'out'}")
    values = json.loads(description.read_text())
    for changes, expected in (
        ({"task": "multilabel"}, "good is multiclass, poor is multilabel"),
        ({"class_names": ["lying", "sitting"]}, 'only good knows "standing"'),
        ({"class_names": ["lying", "sitting", "standing"]}, 'only poor knows "sitting"'),
        ({"class_names": values["class_names"][::-1]}, "in another order"),
    ):
        description.write_text(json.dumps(values | changes))
        assert expected in refused(capsys, *words)


@pytest.mark.parametrize("name", ["predictions_test.csv", "split.csv", "metrics.json", "run.json"])
def test_damaged_files_are_a_users_to_mend(
    name: str, copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copies / "poor" / name
    path.write_bytes(path.read_bytes()[:-30])
    words = (copies / "good", copies / "poor", "split=test", f"output={tmp_path / 'out'}")
    assert "poor" in refused(capsys, *words)


def test_a_split_without_predictions_says_how_to_get_them(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (copies / "good", copies / "poor", f"output={tmp_path / 'out'}")
    message = refused(capsys, *words, "split=train")
    assert f"finetune evaluate run={(copies / 'good').resolve()} split=train" in message


def test_an_output_that_is_a_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    message = refused(capsys, runs / "good", runs / "poor", f"output={tmp_path / 'out'}")
    assert message.startswith("ConfigError: output: ")


# --- the runs' folders ------------------------------------------------------------------------


def test_names_are_as_short_as_they_can_be() -> None:
    paths = [Path("runs/a/first"), Path("runs/b/first"), Path("runs/b/second")]
    assert short_names(paths) == ["a/first", "b/first", "second"]


def test_a_cross_validation_is_left_out_by_name(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "crossed")
    run.path.mkdir()
    run.config.touch()
    run.metrics.write_text('{"folds": []}')
    found, skipped = find_runs([run.path])
    assert found == []
    assert "a cross-validation; its folds are runs" in skipped[0]


# --- backbones --------------------------------------------------------------------------------


@pytest.fixture
def trained_with(monkeypatch: pytest.MonkeyPatch, runs: Path) -> Callable[..., list[Any]]:
    """Return a function that puts other outcomes in the place of trainings."""

    def put(**outcomes: Path | Exception) -> list[Any]:
        configs: list[Any] = []

        def run(config: Any, as_yaml: str) -> Any:
            configs.append(config)
            outcome = outcomes[config.model.backbone]
            if isinstance(outcome, Exception):
                raise outcome
            return SimpleNamespace(run=outcome)

        monkeypatch.setattr("finetune.commands.train.run", run)
        return configs

    return put


def test_backbones_are_trained_under_one_recipe(compared: Path) -> None:
    found = json.loads((compared / "out/comparison.json").read_text())
    contenders = {one["name"]: one for one in found["contenders"]}
    assert set(contenders) == {"nano", "test_resnet"}
    for name, contender in contenders.items():
        run = compared / "runs/stripes" / f"a_{name}"
        assert contender["run"] == str(run)
        assert contender["backbone"] == name
        config = (run / "config.yaml").read_text()
        assert f"backbone: {name}\n" in config
        assert "epochs: 3\n" in config
    assert found["split"] == "test"
    assert found["pairs"][0]["images"] == 16


def test_one_that_fails_does_not_stop_the_others(
    trained_with: Callable[..., list[Any]], runs: Path, tmp_path: Path
) -> None:
    trained_with(
        nano=runs / "good", resnet18=FinetuneError("no room"), resnet34=RuntimeError("odd")
    )
    words = ("backbones=[resnet18,nano,resnet34]", f"output={tmp_path / 'out'}")
    assert compare(*words, "trainer=cpu") == 0
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [one["name"] for one in found["contenders"]] == ["nano"]
    assert found["failures"] == [["resnet18", "no room"], ["resnet34", "RuntimeError: odd"]]
    with (tmp_path / "out/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["failure"]) for row in rows][1:] == [
        ("resnet18", "no room"),
        ("resnet34", "RuntimeError: odd"),
    ]


def test_all_that_fail_are_a_failure_of_the_run(
    trained_with: Callable[..., list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_with(nano=FinetuneError("no room"), resnet18=FinetuneError("no weights"))
    assert compare("backbones=[nano,resnet18]", f"output={tmp_path}", "trainer=cpu") == 1
    message = capsys.readouterr().err
    assert "nano: no room" in message
    assert "resnet18: no weights" in message


@pytest.mark.parametrize("error", [DataError("no images"), RunError("cannot be written")])
def test_a_mistake_that_all_would_share_ends_it_at_once(
    error: Exception, trained_with: Callable[..., list[Any]], tmp_path: Path
) -> None:
    configs = trained_with(nano=error, resnet18=error)
    assert compare("backbones=[nano,resnet18]", f"output={tmp_path}", "trainer=cpu") == 2
    assert len(configs) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbones=[nano,resnet81]"], "Did you mean `resnet18`?"),
        (["backbones=[nano,resnet18]", "optimizer.lr=fast"], "optimizer.lr: got"),
        (["backbones=[nano,resnet18]", "resamples=few"], "resamples: got"),
        (["backbones=[]"], "backbones: got []"),
        (
            ["backbones=[nano,resnet18]", "dataset.fold=all", "dataset.folds=3"],
            "dataset.fold: got all",
        ),
        (["backbones=[nano,resnet18]", "model.weights=pyproject.toml"], "one file fits one"),
    ],
)
def test_a_mistake_is_refused_before_the_first_training(
    words: list[str],
    message: str,
    trained_with: Callable[..., list[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = trained_with()
    assert message in refused(capsys, *words, f"output={tmp_path}", "trainer=cpu")
    assert configs == []


def test_a_folder_of_weights_has_a_file_for_each(
    trained_with: Callable[..., list[Any]],
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("resnet18.safetensors", "resnet18_other.pth", "resnet50-a1.pth", "resnet50d.pth"):
        (weights / name).touch()
    configs = trained_with(resnet18=runs / "good", resnet50=runs / "poor")
    words = (f"model.weights={weights}", f"output={tmp_path / 'out'}", "trainer=cpu")
    assert compare("backbones=[resnet18,resnet50]", *words) == 0
    assert [config.model.weights.name for config in configs] == [
        "resnet18.safetensors",
        "resnet50-a1.pth",
    ]
    message = refused(capsys, "backbones=[resnet18,resnet34]", *words)
    assert "has no file for `resnet34`, expected resnet34.safetensors" in message
