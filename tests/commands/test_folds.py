"""Cross-validation, as a user starts it."""

import csv
import json
import os
import shutil
import signal
import statistics
from pathlib import Path

import pytest
import yaml

import finetune.commands.train
from finetune.cli import main
from finetune.errors import Stopped

FOLDS = ("dataset.folds=2", "dataset.fold=all", "trainer.epochs=1")


@pytest.fixture(scope="module")
def crossed(
    stripes: Path, tmp_path_factory: pytest.TempPathFactory, quick: tuple[str, ...]
) -> Path:
    runs = tmp_path_factory.mktemp("folds")
    words = ["train", f"dataset.root={stripes}", f"runs={runs}", "name=a", *quick, *FOLDS]
    more = ("dataset.test_fraction=0.2", "evidence.resamples=100", "evidence.report=true")
    assert main([*words, *more]) == 0
    return runs / "stripes" / "a"


def test_each_fold_is_a_run_of_its_own(crossed: Path) -> None:
    seen: list[str] = []
    for fold in range(2):
        directory = crossed / f"fold_{fold}"
        assert (directory / "model.ts").is_file()
        config = yaml.safe_load((directory / "config.yaml").read_text())
        assert config["dataset"]["fold"] == fold
        with (directory / "split.csv").open() as file:
            rows = list(csv.DictReader(file))
        seen += [row["path"] for row in rows if row["split"] == "val"]
        assert sum(row["split"] == "test" for row in rows) == 16
    assert len(seen) == len(set(seen)) == 64


def test_mean_and_deviation_are_those_of_the_folds(crossed: Path) -> None:
    metrics = json.loads((crossed / "metrics.json").read_text())
    for split in ("val", "test"):
        values = [fold[split]["log_loss"] for fold in metrics["folds"]]
        assert metrics["mean"][split]["log_loss"] == pytest.approx(sum(values) / 2)
        assert metrics["deviation"][split]["log_loss"] == pytest.approx(statistics.stdev(values))


def test_every_image_is_predicted_by_the_model_that_did_not_see_it(crossed: Path) -> None:
    with (crossed / "predictions_out_of_fold.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["path"] for row in rows}) == 64
    assert {row["fold"] for row in rows} == {"0", "1"}
    right = sum(row["true_label"] == row["label"] for row in rows)
    metrics = json.loads((crossed / "metrics.json").read_text())
    assert metrics["out_of_fold"]["accuracy"] == pytest.approx(right / 64)
    assert metrics["out_of_fold"]["n"] == 64
    ends = metrics["out_of_fold"]["intervals"]["overall"]["accuracy"]
    assert ends["low"] <= right / 64 <= ends["high"]


def test_labels_are_judged_by_the_model_that_did_not_see_them(crossed: Path) -> None:
    with (crossed / "label_issues.csv").open() as file:
        issues = list(csv.DictReader(file))
    with (crossed / "predictions_out_of_fold.csv").open() as file:
        answers = {row["path"]: row for row in csv.DictReader(file)}
    for issue in issues:
        (path,) = [path for path in answers if path.endswith(issue["path"])]
        assert answers[path]["true_label"] == issue["label"]
        assert answers[path][f"p_{issue['suggested']}"][:4] == issue["probability"][:4]


def test_a_stopped_cross_validation_goes_on_where_it_was(
    crossed: Path,
    stripes: Path,
    tmp_path: Path,
    quick: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = finetune.commands.train.fit
    calls: list[object] = []

    def stops_in_the_second_fold(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise Stopped(signal.SIGINT)
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(finetune.commands.train, "fit", stops_in_the_second_fold)
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick, *FOLDS]
    assert main([*words, "dataset.test_fraction=0.2"]) == 130
    run = tmp_path / "stripes" / "a"
    assert f"resume={run}" in capsys.readouterr().out.replace("\n", "")
    assert not (run / "metrics.json").exists()
    assert main(["train", f"resume={run}"]) == 0
    assert len(calls) == 3  # the first fold was not trained again
    assert (
        json.loads((run / "metrics.json").read_text())["mean"]
        == json.loads((crossed / "metrics.json").read_text())["mean"]
    )


def test_folds_on_several_devices_are_refused(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", *quick, *FOLDS]
    assert main([*words, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]) == 2
    assert "dataset.fold: got all, which runs on one device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_refused_leaves_no_run(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", *quick, *FOLDS]
    assert main([*words, "trainer.batch_size=500"]) == 2
    assert "trainer.batch_size: got 500" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_later_fold_lacks_is_said_before_the_first(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "few"
    shutil.copytree(stripes, root)
    for path in sorted((root / "standing").iterdir())[2:]:
        path.unlink()
    words = ["train", f"dataset.root={root}", f"runs={tmp_path / 'runs'}", *quick]
    words += ["dataset.folds=3", "dataset.fold=all", "dataset.monitor=auroc"]
    assert main(words) == 2
    assert "dataset.monitor: got auroc" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_odd_names_give_a_table_that_anybody_can_read(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    root = tmp_path / "odd"
    names = ["=1+1", os.fsdecode(b"caf\xe9")]
    for name, old in zip(names, ("lying", "standing"), strict=True):
        shutil.copytree(stripes / old, root / name)
    words = ["train", f"dataset.root={root}", f"runs={tmp_path / 'runs'}", "name=a", *quick, *FOLDS]
    assert main([*words, "augmentation=none"]) == 0
    table = tmp_path / "runs" / "odd" / "a" / "predictions_out_of_fold.csv"
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["true_label"] for row in rows} == {"'=1+1", "caf\\xe9"}
    assert {row["label"] for row in rows} <= {"'=1+1", "caf\\xe9"}
