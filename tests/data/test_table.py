"""Columns of text from CSV and Parquet."""

import csv
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.table import read_table
from finetune.errors import DataError

words = st.text(st.characters(codec="utf-8"), max_size=8)


def read(tmp_path, content, name="labels.csv", required=("path", "label"), optional=()):
    file = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    file.write_bytes(data)
    return read_table(file, required, optional)


def read_parquet(tmp_path, required=("path", "label"), optional=(), **columns):
    folder = tmp_path / "k=v"  # what pyarrow would take for a column
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "labels.parquet")
    return read_table(folder / "labels.parquet", required, optional)


# --- CSV --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(words, words), min_size=1), st.sampled_from(",;\t"), st.booleans())
def test_any_text_comes_back(tmp_path_factory, rows, delimiter, has_mark):
    file = tmp_path_factory.getbasetemp() / "any.csv"
    encoding = "utf-8-sig" if has_mark else "utf-8"
    with file.open("w", encoding=encoding, newline="") as opened:
        csv.writer(opened, delimiter=delimiter).writerows([("path", "label"), *rows])
    table = read_table(file, ["label", "path"])
    assert table.columns == {"path": [a for a, _ in rows], "label": [b for _, b in rows]}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpath;label;split\n1.jpg;a,b;\n2.jpg;c;\n",
        "path\tlabel\tsplit\r\n1.jpg\ta,b\t\r\n2.jpg\tc\t\r\n",
        'path , split,label\n1.jpg,,"a,b"\n\n2.jpg,,c\n',
    ],
)
def test_separators_and_blank_lines(tmp_path, text):
    table = read(tmp_path, text, optional=("split", "group"))
    assert table.columns == {"path": ["1.jpg", "2.jpg"], "label": ["a,b", "c"], "split": ["", ""]}


def test_only_the_wanted_columns_are_read(tmp_path):
    table = read(tmp_path, "a,path,b,b,label\n1,2,3,4,5\n", optional=("path", "c"))
    assert table.columns == {"path": ["2"], "label": ["5"]}


def test_a_row_is_named_by_the_line_in_which_it_ends(tmp_path):
    table = read(tmp_path, 'path,label\n1,a\n\n2,"b\nb"\n3,c\n')
    assert list(table.lines) == [2, 5, 6]
    assert table.where(1) == f"{tmp_path}/labels.csv, line 5"


def test_bytes_that_are_not_utf8_are_kept(tmp_path):
    table = read(tmp_path, b"path,label\ncaf\xe9.jpg,a\n")
    assert os.fsencode(table.columns["path"][0]) == b"caf\xe9.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column `path`; got none, expected path, label"),
        ("path,label\n", "has no rows; expected one per image: path, label"),
        ("path,labels\n1,a\n", "no column `label`; got path, labels, .* Did you mean `labels`"),
        ("path,label,path\n1,a,2\n", "has the column `path` twice; expected it once"),
        ("path,label\n1,a\n2,b,c\n", "line 3: expected 2 cells, as in the header; got 3. Quote"),
        ("path,label\n1\n", "line 2: expected 2 cells, as in the header; got 1"),
        ('path,label\n1,"a\n', "is not a CSV file: unexpected end of data"),
        (f"path,label\n1,{'a' * 200_000}\n", "is not a CSV file: field larger than"),
        ("p\0a\0t\0h\0,label\n", "is not UTF-8 text; save it as CSV UTF-8"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=f"labels.csv.*{message}"):
        read(tmp_path, text)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=r"label.csv cannot be read: no such file. Did you mean"):
        read_table(tmp_path / "label.csv", ["path"])
    with pytest.raises(DataError, match=r"is a folder; expected a .csv or .parquet file"):
        read_table(tmp_path, ["path"])
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        read_table(tmp_path / "labels.csv" / "labels.csv", ["path"])


# --- Parquet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pa.array([2, 10, None], pa.int8()), ["2", "10", ""]),
        ([1.0, None, float("nan")], ["1", "", ""]),
        ([0.5, 1.0, 2.0], ["0.5", "1", "2"]),
        ([True, False, None], ["true", "false", ""]),
        (["b", "", None], ["b", "", ""]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
    ],
)
def test_a_column_becomes_text(tmp_path, column, text):
    table = read_parquet(tmp_path, label=column, path=["1", "2", "3"], weight=[0.5, 0.5, 0.5])
    assert table.columns == {"path": ["1", "2", "3"], "label": text}
    assert table.where(2).endswith("labels.parquet, row 3")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["1.jpg"], "labels": ["a"]}, "no column `label`.*Did you mean `labels`"),
        ({"path": [], "label": []}, "has no rows"),
        ({"path": ["1.jpg"], "label": [["a"]]}, "no Parquet table of text and numbers"),
    ],
)
def test_bad_parquet(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read_parquet(tmp_path, **columns)


@pytest.mark.parametrize("name", ["labels.parquet", "LABELS.PARQUET"])
def test_parquet_that_is_none(tmp_path, name):
    with pytest.raises(DataError, match="is no Parquet table"):
        read(tmp_path, "path,label\n1.jpg,a\n", name)
