import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import ConfigError, DataError
from finetune.prediction.columns import Columns
from finetune.prediction.predict import Prediction
from finetune.prediction.resume import Done, PartialTable, check_settings

CLASSES = ["ant", "=bee"]
COLUMNS = Columns(top_k=1, abstained=True, prediction_set=True)
SETTINGS = {"model": "abc", "batch_size": 2, "abstain": 0.6, "sets": True, "augment": "none"}
NAMES = ["a.jpg", "=b.jpg", 'c "quoted".jpg', "d\nline.jpg", "e\r.jpg", "f\udce9.jpg", "g.jpg"]
PATHS = [Path(name) for name in NAMES]


def predict(path: Path) -> Prediction:
    if path.name.startswith("c"):
        return Prediction(path, None, None, (), 'not "an" image')
    sure = 0.5 if path.name.startswith("d") else 0.75
    names = ("=bee",) if sure > 0.6 else ("=bee", "ant")
    return Prediction(path, "=bee", sure, (1 - sure, sure), None, sure < 0.6, names)


def write(
    table: PartialTable, paths: list[Path], done: Done, stop: type[BaseException] | None = None
) -> None:
    with table.open(CLASSES, COLUMNS, settings=SETTINGS, done=done) as writer:
        for path in paths:
            writer.write(predict(path))
        if stop:
            raise stop


def whole(folder: Path, suffix: str) -> bytes:
    table = PartialTable(folder / f"whole{suffix}")
    write(table, PATHS, Done())
    assert {path.name for path in folder.iterdir()} == {f"whole{suffix}"}
    return table.output.read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_table_stays_with_its_settings(
    tmp_path: Path, suffix: str, stop: type[BaseException]
) -> None:
    table = PartialTable(tmp_path / f"t{suffix}")
    table.output.write_text("old")
    with pytest.raises(stop):
        write(table, PATHS[:3], Done(), stop)
    assert table.output.read_text() == "old"
    assert table.settings() == SETTINGS
    done = table.find_done(iter(PATHS), batch_size=1)
    assert (done.rows, done.errors, done.abstained) == (3, 1, 0)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@given(data=st.data())
def test_a_table_cut_anywhere_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    content = whole(folder, suffix)
    size = data.draw(st.integers(0, len(content)))
    rubbish = data.draw(st.sampled_from([b"", b"\0" * 9, b"\n", b'"', b"{}\n", b"x,y\n"]))
    batch_size = data.draw(st.integers(1, 8))
    table = PartialTable(folder / f"t{suffix}")
    table.part.write_bytes(content[:size] + rubbish)
    table.record.write_text(json.dumps(SETTINGS))
    paths = iter(PATHS)
    done = table.find_done(paths, batch_size=batch_size)
    rest = list(paths)
    assert done.rows % batch_size == 0
    assert done.rows == len(PATHS) - len(rest)
    assert content[: done.size] == table.part.read_bytes()[: done.size]
    write(table, rest, done)
    assert table.output.read_bytes() == content
    assert not table.part.exists()
    assert not table.record.exists()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_every_whole_row_is_kept(tmp_path: Path, suffix: str) -> None:
    content = whole(tmp_path, suffix)
    table = PartialTable(tmp_path / f"t{suffix}")
    for cut, rows in ((0, 7), (1, 6), (len(content), 0)):
        table.part.write_bytes(content[: len(content) - cut])
        assert table.find_done(iter(PATHS), batch_size=1).rows == rows
    table.part.write_bytes(content)
    assert table.find_done(iter(PATHS), batch_size=1) == Done(7, 1, 1, len(content))
    assert table.find_done(iter(PATHS), batch_size=3).rows == 6


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([PATHS[0], Path("other.jpg"), *PATHS[2:]], r"row 2 .* is of `'?=b\.jpg`.*`other\.jpg`"),
        (PATHS[:2], r"row 3 .* no image there"),
    ],
)
def test_other_inputs_are_refused(
    tmp_path: Path, suffix: str, paths: list[Path], message: str
) -> None:
    table = PartialTable(tmp_path / f"t{suffix}")
    with pytest.raises(RuntimeError):
        write(table, PATHS, Done(), RuntimeError)
    with pytest.raises(DataError, match=message):
        table.find_done(iter(paths), batch_size=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, r"begun with batch_size=2, got batch_size=4"),
        ({"abstain": None}, r"begun with abstain=0\.6, got abstain=null"),
        ({"sets": False}, r"begun with sets=true, got sets=false"),
        ({"augment": "flip"}, r"begun with augment=none, got augment=flip"),
        ({"model": "def"}, "begun with another model"),
    ],
)
def test_other_settings_are_refused(changes: dict[str, object], message: str) -> None:
    check_settings(SETTINGS, SETTINGS, part=Path("t.csv.part"))
    with pytest.raises(ConfigError, match=message):
        check_settings(SETTINGS, {**SETTINGS, **changes}, part=Path("t.csv.part"))


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str | None) -> None:
    table = PartialTable(tmp_path / "t.csv")
    assert table.settings() is None
    table.part.touch()
    if text is not None:
        table.record.write_text(text)
    with pytest.raises(ConfigError, match=r"t\.csv\.part\.json is missing or damaged"):
        table.settings()


def test_two_processes_do_not_write_into_one_table(tmp_path: Path) -> None:
    first, second = PartialTable(tmp_path / "t.csv"), PartialTable(tmp_path / "t.csv")
    with first.open(CLASSES, COLUMNS, settings=SETTINGS, done=Done()) as writer:
        writer.write(predict(PATHS[0]))
        with pytest.raises(ConfigError, match="another process writes"):
            write(second, PATHS, Done())
        assert not second.is_ours
    assert first.output.read_bytes().count(b"\n") == 2


def test_a_table_without_rows_can_be_taken_away(tmp_path: Path) -> None:
    table = PartialTable(tmp_path / "deep" / "t.csv")
    with pytest.raises(RuntimeError):
        write(table, [], Done(), RuntimeError)
    assert len(list(table.output.parent.iterdir())) == 2
    table.discard()
    assert not list(table.output.parent.iterdir())


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    write(PartialTable(link), PATHS, Done())
    assert link.is_symlink()
    assert "bee" in target.read_text()


def test_parquet_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.csv or \.jsonl"):
        PartialTable(tmp_path / "t.parquet")
