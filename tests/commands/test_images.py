"""The images of a training: as found, or as the run began with them."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from finetune.cli import _compose, _prepare, _tokens
from finetune.commands.images import RUN_VARIABLE, images_of, parent_run
from finetune.config import TrainConfig
from finetune.data.split_file import read_split
from finetune.errors import DataError, RunError
from finetune.validation import validate

CONSOLE = Console(file=io.StringIO())


def config(root: Path, *words: str) -> TrainConfig:
    tokens, _ = _tokens("train", [f"dataset.root={root}", "model=nano", *words])
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    return validate(TrainConfig, values)


def test_new_images_are_audited_and_divided(stripes: Path) -> None:
    folder, audit = images_of(config(stripes), CONSOLE, is_main=True, looks_ahead=False)
    assert audit is not None
    assert {sample.split for sample in folder.samples} == {"train", "val"}
    assert set(audit.digests) == {sample.path for sample in folder.samples}


def test_a_run_that_goes_on_has_the_images_that_it_began_with(
    trained: Path, stripes: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(stripes, tmp_path / "stripes")
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": str(root)}))
    shutil.copy(root / "lying" / "000.png", root / "lying" / "new.png")
    going_on = config(root).model_copy(update={"resume": run})

    folder, audit = images_of(going_on, CONSOLE, is_main=True, looks_ahead=False)
    assert audit is None  # nothing asks for it
    assert folder.samples == tuple(read_split(run / "split.csv", label_separator=None))

    (root / "lying" / "001.png").unlink()
    with pytest.raises(RunError, match=r"1 of the 80 images .* `lying/001\.png`"):
        images_of(going_on, CONSOLE, is_main=True, looks_ahead=False)


@pytest.mark.parametrize("key", ["class_names", "recipe"])
def test_a_record_that_is_not_whole_is_said_to_be(
    trained: Path, stripes: Path, tmp_path: Path, key: str
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    del record[key]
    (run / "run.json").write_text(json.dumps(record))
    going_on = config(stripes).model_copy(update={"resume": run})
    with pytest.raises(RunError, match=f"run.json has no {key}; it is damaged"):
        images_of(going_on, CONSOLE, is_main=True, looks_ahead=False)


def test_what_an_audit_finds_stops_a_training(stripes: Path, tmp_path: Path) -> None:
    root = shutil.copytree(stripes, tmp_path / "stripes")
    shutil.copy(root / "lying" / "000.png", root / "standing" / "copy.png")
    with pytest.raises(DataError, match="conflicting_labels"):
        images_of(config(root), CONSOLE, is_main=True, looks_ahead=False)


def test_only_a_started_process_has_a_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parent_run(is_main=False) is None
    monkeypatch.setenv(RUN_VARIABLE, "runs/x")
    assert parent_run(is_main=False) == Path("runs/x")
    assert parent_run(is_main=True) is None
