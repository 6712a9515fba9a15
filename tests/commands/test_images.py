"""The images of a training: as found, or as the run began with them."""

import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from finetune.cli import _compose, _prepare, _tokens
from finetune.commands.images import (
    RUN_VARIABLE,
    STAMPS,
    Division,
    Images,
    images_of,
    keep_stamps,
    parent_run,
)
from finetune.config import TrainConfig
from finetune.data import stamps as stamps_module
from finetune.data.split_file import read_split
from finetune.data.stamps import hash_file, read_stamps
from finetune.errors import DataError, RunError
from finetune.run import RunDirectory
from finetune.validation import validate

CONSOLE = Console(file=io.StringIO())


def config(root: Path, *words: str) -> TrainConfig:
    tokens, _ = _tokens("train", [f"dataset.root={root}", "model=nano", *words])
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    return validate(TrainConfig, values)


def test_new_images_are_audited_and_divided(stripes: Path) -> None:
    found = images_of(config(stripes), CONSOLE, is_main=True, looks_ahead=False)
    folder, audit = found.folder, found.audit
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

    found = images_of(going_on, CONSOLE, is_main=True, looks_ahead=False)
    folder, audit = found.folder, found.audit
    assert audit is None  # nothing asks for it
    assert folder.samples == tuple(read_split(run / "split.csv", label_separator=None))

    (root / "lying" / "001.png").unlink()
    with pytest.raises(RunError, match=r"1 of the 80 images .* `lying/001\.png`"):
        images_of(going_on, CONSOLE, is_main=True, looks_ahead=False)


@dataclass(frozen=True)
class Begun:
    """A run on a copy of the images, which may be changed."""

    root: Path
    run: Path

    def go_on(self, *words: str) -> Images:
        going_on = config(self.root, *words).model_copy(update={"resume": self.run})
        return images_of(going_on, CONSOLE, is_main=True, looks_ahead=False)

    def change(self, *names: str) -> None:
        """Write other pixels into images of one class, and leave their times."""
        for name in names:
            path = self.root / "lying" / f"{name}.png"
            old = path.stat()
            shutil.copy(self.root / "standing" / f"{name}.png", path)
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1000))


@pytest.fixture
def begun(trained: Path, stripes: Path, tmp_path: Path) -> Begun:
    root = shutil.copytree(stripes, tmp_path / "stripes")
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": str(root)}))
    return Begun(root, run)


def test_a_run_knows_its_images_by_size_time_and_digest(trained: Path, stripes: Path) -> None:
    stamps = read_stamps(trained / STAMPS)
    rows = read_split(trained / "split.csv", label_separator=None)
    assert list(stamps) == [row.path for row in rows]
    for path, stamp in stamps.items():
        status = (stripes / path).stat()
        assert stamp[:2] == (status.st_size, status.st_mtime_ns)
        assert stamp.digest == hash_file(stripes / path).hex()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["007"], r"1 of the 80 images that the run began with has changed in .*; the first: "),
        (["007", "011", "030"], r"3 of the 80 images that the run began with have changed in "),
    ],
)
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_run_does_not_go_on_with_changed_images(
    begun: Begun, names: list[str], said: str, cache: str
) -> None:
    begun.change(*names)
    with pytest.raises(RunError, match=rf"{said}.*`lying/007\.png`. Put the old files back"):
        begun.go_on(f"dataset.cache={cache}")


def test_images_that_were_put_back_are_read_once_and_pass(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        stamps_module, "hash_file", lambda path: read.append(path.name) or hash_file(path)
    )
    begun.go_on()
    assert not read  # sizes and times are those of the copied files
    old = begun.root / "lying" / "003.png"
    content = old.read_bytes()
    begun.change("003")
    old.write_bytes(content)
    os.utime(old, ns=(5, 5))
    stamps = begun.go_on().stamps
    assert read == ["003.png"]
    assert stamps is not None
    assert stamps["lying/003.png"].mtime_ns == 5


def test_a_run_of_before_goes_on_unchecked(begun: Begun) -> None:
    (begun.run / STAMPS).unlink()
    begun.change("003")
    assert begun.go_on().stamps is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column `path`.* is damaged"),
        ("path,size,mtime_ns,sha256\nx,1,2,3\n", "expected a size, a time .* is damaged"),
        (f"path,size,mtime_ns,sha256\nx,1,2,{'0' * 64}\n", "lacks `lying/000.png`; it is damaged"),
    ],
)
def test_stamps_that_are_damaged_are_said_to_be(begun: Begun, text: str, said: str) -> None:
    (begun.run / STAMPS).write_text(text)
    with pytest.raises(RunError, match=rf"^resume: .*images\.csv.*({said})"):
        begun.go_on()


def test_stamps_are_kept_of_the_images_of_the_run_alone(stripes: Path, tmp_path: Path) -> None:
    found = images_of(config(stripes), CONSOLE, is_main=True, looks_ahead=False)
    assert found.stamps is not None
    fewer = replace(found.folder, samples=found.folder.samples[:3])
    keep_stamps(RunDirectory(tmp_path), fewer, found.stamps)
    assert list(read_stamps(tmp_path / STAMPS)) == [sample.path for sample in fewer.samples]
    assert [path.name for path in tmp_path.iterdir()] == [STAMPS]


def test_a_division_is_looked_at_before_images_are_opened(
    stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(division: Division) -> None:
        assert not division.is_final
        assert len(division.folder.samples) == 80
        raise DataError("as the check says")

    monkeypatch.setattr(
        "finetune.commands.images.audit_images", lambda *_, **__: pytest.fail("audited")
    )
    with pytest.raises(DataError, match="as the check says"):
        images_of(config(stripes), CONSOLE, is_main=True, looks_ahead=False, check=refuse)


@pytest.mark.parametrize(
    ("words", "is_final"),
    [([], True), (["dataset.folds=2"], False)],
)
def test_given_splits_are_final_unless_there_are_folds(
    stripes: Path, tmp_path: Path, words: list[str], is_final: bool
) -> None:
    for split in ("train", "val"):
        shutil.copytree(stripes, tmp_path / split)
    seen: list[Division] = []

    def stop(division: Division) -> None:
        seen.append(division)
        raise DataError("seen")

    with pytest.raises(DataError, match="seen"):
        images_of(config(tmp_path, *words), CONSOLE, is_main=True, looks_ahead=False, check=stop)
    assert seen[0].is_final is is_final


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
