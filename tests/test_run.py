import json
import math
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import run as run_module
from finetune.errors import RunError
from finetune.run import (
    RunDirectory,
    check_writable,
    command_line,
    create_run,
    open_run,
    read_figures,
    read_record,
    replacing,
    typed,
    versions,
    write_json,
    write_text,
)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


# --- a new run --------------------------------------------------------------------------------


def test_a_named_run_is_empty_but_for_its_folder_of_checkpoints(tmp_path):
    run = create_run(tmp_path / "runs", "flowers", "first")
    assert run.path == tmp_path / "runs" / "flowers" / "first"
    assert [path.name for path in run.path.iterdir()] == ["checkpoints"]
    assert list(run.checkpoints.iterdir()) == []
    assert leftovers(tmp_path) == []


def test_a_run_without_name_is_named_by_its_time(tmp_path):
    run = create_run(tmp_path, "flowers", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.path.name)


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    class Stopped(run_module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(run_module, "datetime", Stopped)
    names = [create_run(tmp_path, "flowers", None).path.name for _ in range(3)]
    assert names == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3"]
    assert (tmp_path / "latest").resolve().name == names[-1]


def test_a_taken_name_is_refused_and_nothing_is_touched(tmp_path):
    first = create_run(tmp_path, "flowers", "mine")
    first.config.write_text("seed: 0")
    with pytest.raises(RunError, match=r"name: .*mine is there already.*resume="):
        create_run(tmp_path, "flowers", "mine")
    assert first.config.read_text() == "seed: 0"


@pytest.mark.parametrize("depth", ["runs", "runs/flowers"])
def test_a_run_that_cannot_be_written_is_refused(tmp_path, depth):
    # A file where a folder should be stops even root.
    blocked = tmp_path / depth
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file")
    with pytest.raises(RunError, match=r"cannot be written: .*runs=FOLDER"):
        create_run(tmp_path / "runs", "flowers", None)
    assert blocked.read_text() == "a file"


def test_latest_points_to_the_newest_run_by_a_path_that_survives_a_move(tmp_path):
    runs = tmp_path / "runs"
    create_run(runs, "flowers", "old")
    create_run(runs, "birds", "new")
    link = runs / "latest"
    assert link.readlink() == Path("birds/new")
    runs.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest" / "checkpoints").is_dir()


def test_latest_is_replaced_in_one_step(tmp_path, monkeypatch):
    create_run(tmp_path, "flowers", "old")
    seen = []

    def unlink(path, missing_ok=False, _unlink=Path.unlink):
        seen.append(path.name)
        return _unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    create_run(tmp_path, "flowers", "new")
    assert (tmp_path / "latest").readlink() == Path("flowers/new")
    assert seen
    assert "latest" not in seen
    assert leftovers(tmp_path) == []


def test_a_link_that_points_nowhere_is_replaced(tmp_path):
    (tmp_path / "latest").symlink_to("flowers/deleted")
    run = create_run(tmp_path, "flowers", "new")
    assert (tmp_path / "latest").resolve() == run.path.resolve()


def test_a_data_set_called_latest_is_refused(tmp_path):
    first = create_run(tmp_path, "flowers", "first")
    with pytest.raises(RunError, match=r"dataset\.name=NAME"):
        create_run(tmp_path, "latest", "second")
    assert [path.name for path in first.path.iterdir()] == ["checkpoints"]


def test_a_folder_called_latest_is_never_overwritten(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(RunError, match=r"latest is no link.*runs=FOLDER"):
        create_run(tmp_path, "flowers", "first")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_check_writable_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    check_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    check_writable(tmp_path / "a")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_check_writable_names_the_folder_and_the_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as caught:
        check_writable(tmp_path / "file" / "runs")
    assert str(tmp_path / "file" / "runs") in str(caught.value)
    assert "Not a directory" in str(caught.value)


# --- a run that is there ----------------------------------------------------------------------


def test_run_directory_only_names_files(tmp_path):
    run = RunDirectory(tmp_path / "nowhere")
    names = {name: path for name, path in vars(run).items() if name != "path"}
    assert all(run.path in path.parents for path in names.values())
    assert len(set(names.values())) == len(names)
    assert run.predictions("val").name == "predictions_val.csv"
    assert not run.path.exists()


def test_every_name_stands_in_the_drawing_of_the_module():
    run = RunDirectory(Path())
    missing = [p.name for p in vars(run).values() if p.name and p.name not in run_module.__doc__]
    assert missing == []


def test_open_run_follows_the_link(tmp_path):
    run = create_run(tmp_path, "flowers", "mine")
    run.config.touch()
    assert open_run(tmp_path / "latest").path == run.path.resolve()


def test_open_run_refuses_a_folder_that_is_missing_or_no_run(tmp_path):
    with pytest.raises(RunError, match=r"there is no such folder"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a run directory; it has no config\.yaml"):
        open_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"there is no such folder"):
        open_run(tmp_path / "file")


def test_the_record_comes_back(tmp_path):
    run = RunDirectory(tmp_path)
    write_json(run.record, {"data": "/data/Blüten", "seed": 3})
    assert read_record(run) == {"data": "/data/Blüten", "seed": 3}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"", "cannot be read"),
        (b'{"data": ', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "does not name the data"),
        (b"{}", "does not name the data"),
        (b'{"data": 3}', "does not name the data"),
    ],
)
def test_a_missing_or_damaged_record_is_refused_by_name(tmp_path, content, reason):
    run = RunDirectory(tmp_path)
    if content is not None:
        run.record.write_bytes(content)
    with pytest.raises(RunError, match=rf"run\.json .*{reason}|run\.json {reason}"):
        read_record(run)


# --- whole files or none ----------------------------------------------------------------------


def test_replacing_puts_the_new_file_in_the_place_of_the_old(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # a rename across file systems is no single step
        assert temporary.suffix == path.suffix  # matplotlib and others go by it
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_replacing_without_a_file_written_is_an_error_and_keeps_the_old(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_a_killed_process_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    code = """
        import os, sys, signal
        from pathlib import Path
        from finetune.run import replacing
        with replacing(Path(sys.argv[1])) as temporary:
            temporary.write_text("half of the n")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), path], check=False)
    assert killed.returncode == -9
    assert path.read_text() == "old"
    with replacing(path) as temporary:  # and what it left does not stand in the way
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_the_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    events = []
    monkeypatch.setattr(os, "fsync", lambda _: events.append(("fsync", path.exists())))
    write_text(path, "text")
    assert events == [("fsync", False), ("fsync", True)]  # the file, then its folder


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.txt"
    write_text(path, text)
    assert path.read_bytes() == text.encode()


def test_a_file_name_that_is_not_utf8_comes_back(tmp_path):
    name = os.fsdecode(b"bl\xfcte.jpg")
    write_text(tmp_path / "split.csv", name)
    assert (tmp_path / "split.csv").read_bytes() == b"bl\xfcte.jpg"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_a_number_that_is_none_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "metrics.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"accuracy": {"val": [value]}})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


# --- commands ---------------------------------------------------------------------------------


def test_a_command_can_be_pasted_into_a_shell():
    text = typed("predict", run=Path("runs/my flowers"), input="it's", output="$x.csv")
    assert shlex.split(text) == [
        "finetune",
        "predict",
        "run=runs/my flowers",
        "input=it's",
        "output=$x.csv",
    ]


def test_a_command_names_make_where_this_one_came_from_make(monkeypatch):
    monkeypatch.setenv("FINETUNE_PROGRAM", "make")
    assert typed("train", resume="runs/latest") == "make train resume=runs/latest"


def test_the_own_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/finetune", "train", "dataset.root=a b", "-m"])
    assert command_line() == "finetune train 'dataset.root=a b' -m"


def test_versions_are_those_that_are_installed():
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"finetune", "torch", "timm", "pillow"} <= set(found)
    assert all(re.match(r"\d+\.\d+", version) for version in found.values())


def test_figures_that_are_damaged_are_said_to_be(tmp_path):
    directory = RunDirectory(tmp_path)
    with pytest.raises(RunError, match=r"metrics\.json cannot be read"):
        read_figures(directory)
    directory.metrics.write_text("{half")
    with pytest.raises(RunError, match=r"metrics\.json cannot be read"):
        read_figures(directory)
    directory.metrics.write_text("[1]")
    with pytest.raises(RunError, match="holds no figures"):
        read_figures(directory)
    directory.metrics.write_text('{"val": {"accuracy": 1.0}}')
    assert read_figures(directory)["val"] == {"accuracy": 1.0}
