import csv
import io
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import ConfigError
from finetune.prediction import writers
from finetune.prediction.columns import Columns
from finetune.prediction.predict import Prediction
from finetune.prediction.writers import (
    CsvWriter,
    class_columns,
    disarm_formula,
    escape_undecodable,
    open_writer,
)

CLASSES = ("ant", "bee")
GOOD = Prediction(Path("in/a.jpg"), "bee", 0.75, (0.25, 0.75))
BAD = Prediction(Path("in/b.jpg"), None, None, (), "damaged, or not supported")
FORMATS = ("csv", "jsonl", "parquet")

# A time limit per example fails on a busy machine.
relaxed = settings(deadline=None)


def write(path: Path, predictions: Iterable[Prediction], classes: Sequence[str] = CLASSES) -> None:
    with open_writer(path, classes) as writer:
        for prediction in predictions:
            writer.write(prediction)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_is_what_the_documentation_says(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", [GOOD, BAD])
    assert (tmp_path / "p.csv").read_bytes().decode() == (
        '"path","label","probability","p_ant","p_bee","error"\n'
        '"in/a.jpg","bee",0.75,0.25,0.75,""\n'
        '"in/b.jpg","","","","","damaged, or not supported"\n'
    )


def test_several_labels_and_none_are_written_with_their_numbers(tmp_path: Path) -> None:
    both = Prediction(Path("in/a.jpg"), "ant|bee", 0.625, (0.75, 0.875))
    none = Prediction(Path("in/b.jpg"), "", 0.75, (0.125, 0.125))
    for suffix in FORMATS:
        write(tmp_path / f"p.{suffix}", [both, none])
    assert (tmp_path / "p.csv").read_bytes().decode().splitlines()[1:] == [
        '"in/a.jpg","ant|bee",0.625,0.75,0.875,""',
        '"in/b.jpg","",0.75,0.125,0.125,""',
    ]
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["ant|bee", ""]
    assert rows[1]["probabilities"] == {"ant": 0.125, "bee": 0.125}
    assert pq.read_table(tmp_path / "p.parquet").column("label").to_pylist() == ["ant|bee", ""]


def test_jsonl_is_what_the_documentation_says(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [GOOD, BAD])
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert rows == [
        {
            "path": "in/a.jpg",
            "label": "bee",
            "probability": 0.75,
            "probabilities": {"ant": 0.25, "bee": 0.75},
            "error": None,
        },
        {
            "path": "in/b.jpg",
            "label": None,
            "probability": None,
            "probabilities": None,
            "error": "damaged, or not supported",
        },
    ]


def test_parquet_is_what_the_documentation_says(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", [GOOD, BAD])
    nothing = {"label": None, "probability": None, "p_ant": None, "p_bee": None}
    assert pq.read_table(tmp_path / "p.parquet").to_pylist() == [
        {
            "path": "in/a.jpg",
            "label": "bee",
            "probability": 0.75,
            "p_ant": 0.25,
            "p_bee": 0.75,
            "error": None,
        },
        {"path": "in/b.jpg", **nothing, "error": "damaged, or not supported"},
    ]


def test_parquet_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "_MAX_NUMBERS_PER_GROUP", 12)
    write(tmp_path / "p.parquet", [GOOD, BAD] * 5)
    file = pq.ParquetFile(tmp_path / "p.parquet")
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_prediction_gives_an_empty_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    write(path, [])
    if suffix == "parquet":
        assert pq.read_table(path).num_rows == 0
    else:
        assert len(path.read_text().splitlines()) == (1 if suffix == "csv" else 0)


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_is_seen_before_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_text("old")
    with open_writer(path, CLASSES) as writer:
        writer.write(GOOD)
        assert path.read_text() == "old"
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_text("old")

    def predictions() -> Iterator[Prediction]:
        yield GOOD
        raise error

    with pytest.raises(error):
        write(path, predictions())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_leave_memory_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with open_writer(path, CLASSES) as writer:
        for _ in range(5000):
            writer.write(GOOD)
        (temporary,) = tmp_path.iterdir()
        assert temporary.stat().st_size > 100_000


def test_missing_folders_are_made_and_suffixes_may_be_capitals(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "P.CSV", [GOOD])
    assert len(read_csv((tmp_path / "a" / "b" / "P.CSV").read_text())) == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    write(link, [GOOD])
    assert link.is_symlink()
    assert "bee" in target.read_text()


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "p.csv", [GOOD])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["p.json", "p.csv.gz", "p", "p.xlsx", ".csv"])
def test_another_suffix_names_the_three(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"\.csv, \.jsonl or \.parquet"),
        open_writer(tmp_path / name, CLASSES),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_near_suffix_is_suggested() -> None:
    with (
        pytest.raises(ConfigError, match=r"Did you mean `\.jsonl`"),
        open_writer(Path("p.json"), CLASSES),
    ):
        pass


def test_a_place_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "file" / "p.csv", tmp_path / "folder.csv"):
        with pytest.raises(ConfigError, match="cannot write"), open_writer(path, CLASSES):
            pass


@pytest.mark.parametrize("path", [None, Path("-")])
def test_standard_output_is_csv_in_utf8(
    capfdbinary: pytest.CaptureFixture[bytes], path: Path | None
) -> None:
    with open_writer(path, ("蜂", "ant")) as writer:
        writer.write(GOOD)
    sys.stdout.write("still open\n")
    lines = capfdbinary.readouterr().out.decode().split("\n")
    assert lines[0] == '"path","label","probability","p_蜂","p_ant","error"'
    assert lines[1:] == ['"in/a.jpg","bee",0.75,0.25,0.75,""', "still open", ""]


TEXT = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8)
AWKWARD = st.one_of(
    TEXT,
    st.binary(min_size=1, max_size=8).filter(lambda name: b"\0" not in name).map(os.fsdecode),
    st.builds(str.__add__, st.sampled_from(list("=+-@\t\r\n'\"")), TEXT),
)


@relaxed
@given(AWKWARD, AWKWARD, AWKWARD)
def test_any_text_survives_csv(name: str, label: str, error: str) -> None:
    stream = io.StringIO(newline="")
    writer = CsvWriter(stream, [label, label, "z"])
    writer.write(Prediction(Path(name), label, 0.5, (0.5, 0.25, 0.25), error))
    table = stream.getvalue().encode().decode()
    header, cells = csv.reader(io.StringIO(table, newline=""))
    assert len(set(header)) == len(header) == len(cells) == 7
    for cell, raw in ((cells[0], str(Path(name))), (cells[1], label), (cells[6], error)):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert cell.removeprefix("'") == escape_undecodable(raw).removeprefix("'")


@relaxed
@given(AWKWARD)
def test_any_text_survives_json(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("json") / "p.jsonl"
    write(path, [Prediction(Path(name), name, 0.5, (0.5, 0.5))], [name, "other name"])
    (line,) = path.read_bytes().decode().removesuffix("\n").split("\n")
    row = json.loads(line)
    assert row["path"] == escape_undecodable(str(Path(name)))
    assert list(row["probabilities"]) == [escape_undecodable(name), "other name"]


@relaxed
@given(AWKWARD)
def test_escaped_text_is_valid_utf8_and_only_changed_where_it_was_not(text: str) -> None:
    escaped = escape_undecodable(text)
    escaped.encode()
    assert (escaped == text) == all(not 0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def test_undecodable_bytes_are_hexadecimal_in_every_format(tmp_path: Path) -> None:
    raw = os.fsdecode(b"caf\xe9")
    prediction = Prediction(Path(raw), raw, 0.75, (0.25, 0.75))
    for suffix in FORMATS:
        write(tmp_path / f"p.{suffix}", [prediction], ["tea", raw])
    (row,) = read_csv((tmp_path / "p.csv").read_text())
    assert (row["path"], row["label"], row["p_caf\\xe9"]) == ("caf\\xe9", "caf\\xe9", "0.75")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert row["probabilities"] == {"tea": 0.25, row["label"]: 0.75}
    (row,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert (row["path"], row["p_caf\\xe9"]) == ("caf\\xe9", 0.75)


def test_formulas_are_raw_outside_csv(tmp_path: Path) -> None:
    prediction = Prediction(Path("=1+1.jpg"), "@b", 0.75, (0.25, 0.75))
    for suffix in FORMATS:
        write(tmp_path / f"p.{suffix}", [prediction], ["-a", "@b"])
    (row,) = read_csv((tmp_path / "p.csv").read_text())
    assert (row["path"], row["label"]) == ("'=1+1.jpg", "'@b")
    assert json.loads((tmp_path / "p.jsonl").read_text())["path"] == "=1+1.jpg"
    (row,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert (row["path"], row["label"], row["p_@b"]) == ("=1+1.jpg", "@b", 0.75)


@pytest.mark.parametrize("text", ["=a", "+a", "-a", "@a", "\ta", "\ra", "\na"])
def test_formulas_are_disarmed(text: str) -> None:
    assert disarm_formula(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=b", "a", "'=a", " =a", "1-2"])
def test_other_text_stays(text: str) -> None:
    assert disarm_formula(text) == text


@relaxed
@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "b", "path", "\udce9", "\\xe9"]), max_size=9))
def test_class_columns_are_unique_and_keep_the_order(names: list[str]) -> None:
    columns = class_columns(names)
    assert len(set(columns)) == len(columns) == len(names)
    for column, name in zip(columns, names, strict=True):
        assert column.startswith(f"p_{escape_undecodable(name)}")
    assert not {"path", "label", "probability", "error"} & set(columns)


def test_a_taken_column_name_is_numbered() -> None:
    assert class_columns(["a", "a", "a_2", "b"]) == ["p_a", "p_a_3", "p_a_2", "p_b"]


@relaxed
@given(st.floats(0, 1, width=32))
def test_float32_survives_text(number: float) -> None:
    stream = io.StringIO(newline="")
    CsvWriter(stream, ["a"]).write(Prediction(Path("p"), "a", number, (number,)))
    (row,) = read_csv(stream.getvalue())
    assert len(row["p_a"]) <= 16
    assert np.float32(row["p_a"]) == np.float32(number)


EVERYTHING = Columns(probabilities=True, top_k=2, abstained=True)
SURE = Prediction(Path("a"), "@b", 0.75, (0.125, 0.75, 0.125), abstained=False)
UNSURE = Prediction(Path("b"), "c", 0.5, (0.25, 0.25, 0.5), abstained=True)


def write_three(path: Path, columns: Columns) -> None:
    with open_writer(path, ("a", "@b", "c"), columns) as writer:
        for prediction in (SURE, UNSURE, BAD):
            writer.write(prediction)


def test_the_best_classes_and_abstention_have_columns(tmp_path: Path) -> None:
    write_three(tmp_path / "p.csv", EVERYTHING)
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        '"path","label","probability","abstained","label_1","probability_1","label_2",'
        '"probability_2","p_a","p_@b","p_c","error"',
        '"a","\'@b",0.75,"false","\'@b",0.75,"a",0.125,0.125,0.75,0.125,""',
        '"b","c",0.5,"true","c",0.5,"a",0.25,0.25,0.25,0.5,""',
        '"in/b.jpg","","","","","","","","","","","damaged, or not supported"',
    ]
    write_three(tmp_path / "p.jsonl", EVERYTHING)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["abstained"] for row in rows] == [False, True, None]
    top = [{"label": "@b", "probability": 0.75}, {"label": "a", "probability": 0.125}]
    assert rows[0]["top"] == top
    assert rows[2]["top"] is None
    write_three(tmp_path / "p.parquet", EVERYTHING)
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["abstained"] for row in table] == [False, True, None]
    assert [row["label_1"] for row in table] == ["@b", "c", None]
    assert [row["probability_2"] for row in table] == [0.125, 0.25, None]


def test_columns_of_the_classes_can_be_left_away(tmp_path: Path) -> None:
    few = Columns(probabilities=False)
    for suffix in FORMATS:
        write_three(tmp_path / f"p.{suffix}", few)
    names = ["path", "label", "probability", "error"]
    assert list(read_csv((tmp_path / "p.csv").read_text())[0]) == names
    assert list(json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])) == names
    assert pq.read_table(tmp_path / "p.parquet").column_names == names


def test_no_more_best_classes_than_there_are(tmp_path: Path) -> None:
    write_three(tmp_path / "p.csv", Columns(probabilities=False, top_k=9))
    row = read_csv((tmp_path / "p.csv").read_text())[0]
    assert [name for name in row if name.startswith("label_")] == ["label_1", "label_2", "label_3"]


RAW = os.fsdecode(b"caf\xe9")
SETS = Columns(probabilities=False, abstained=True, prediction_set=True)


def write_sets(path: Path) -> None:
    formula = ("=1+1", "a|b", RAW)
    one = Prediction(Path("a"), "a|b", 1.0, (0.0, 1.0, 0.0), None, False, ("a|b",))
    three = Prediction(Path("b"), "=1+1", 0.5, (0.5, 0.25, 0.25), None, True, formula)
    with open_writer(path, formula, SETS) as writer:
        for prediction in (one, three, BAD):
            writer.write(prediction)


def test_prediction_sets_are_text_in_tables_and_lists_in_json(tmp_path: Path) -> None:
    for suffix in FORMATS:
        write_sets(tmp_path / f"p.{suffix}")
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        '"path","label","probability","abstained","prediction_set","error"',
        '"a","a|b",1.0,"false","a|b",""',
        '"b","\'=1+1",0.5,"true","\'=1+1|a|b|caf\\xe9",""',
        '"in/b.jpg","","","","","damaged, or not supported"',
    ]
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    lists = [["a|b"], ["=1+1", "a|b", "caf\\xe9"], None]
    assert [row["prediction_set"] for row in rows] == lists
    keys = ["path", "label", "probability", "abstained", "prediction_set", "error"]
    assert list(rows[0]) == keys
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == keys
    texts = [names and "|".join(names) for names in lists]
    assert table.column("prediction_set").to_pylist() == texts
