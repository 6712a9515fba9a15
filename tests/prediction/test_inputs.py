import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.errors import DataError
from finetune.prediction.inputs import find_inputs

ROWS = ["a.jpg", "sub/b.png", "/elsewhere/c.jpg", "caf\u00e9.jpg"]


def write_manifest(path: Path, names: list[str], column: str = "path") -> Path:
    match path.suffix:
        case ".csv":
            lines = [f"label,{column}", *(f'x,"{name}"' for name in names)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        case ".jsonl":
            lines = [json.dumps({"label": "x", column: name}) for name in names]
            path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        case _:
            pq.write_table(pa.table({"label": ["x"] * len(names), column: names}), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_relative_paths_of_a_manifest_begin_in_its_folder(tmp_path: Path, suffix: str) -> None:
    manifest = write_manifest(tmp_path / f"m{suffix}", ROWS, "image")
    found = find_inputs(str(manifest), path_column="image")
    assert found.count == 4
    assert list(found.paths) == [
        tmp_path / "a.jpg",
        tmp_path / "sub" / "b.png",
        Path("/elsewhere/c.jpg"),
        tmp_path / "caf\u00e9.jpg",
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", ""], "path is empty"),
        (["a.jpg", "https://x.org/a.jpg"], "is a URL, and nothing is downloaded"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_predicted(
    tmp_path: Path, suffix: str, names: list[str], message: str
) -> None:
    manifest = write_manifest(tmp_path / f"m{suffix}", names)
    place = {".csv": "line 3", ".jsonl": "line 2", ".parquet": "row 2"}[suffix]
    with pytest.raises(DataError, match=rf"{suffix}, {place}: .*{message}"):
        find_inputs(str(manifest))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_missing_column_or_file_gets_the_nearest_word(tmp_path: Path, suffix: str) -> None:
    manifest = write_manifest(tmp_path / f"m{suffix}", ROWS, "paths")
    with pytest.raises(DataError, match="Did you mean `paths`"):
        find_inputs(str(manifest))
    with pytest.raises(DataError, match="no such file"):
        find_inputs(str(tmp_path / f"none{suffix}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("[1]", "got list, expected a JSON object"),
        ("{", "no JSON"),
        ('{"path": 3}', "`path` is 3, expected a path"),
    ],
)
def test_json_that_is_no_row_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        find_inputs(str(tmp_path / "m.jsonl"))


def test_standard_input_has_a_path_on_each_line() -> None:
    stream = io.BytesIO(b"a.jpg\r\n\n  \n b c.jpg\ncaf\xe9.jpg")
    found = find_inputs("-", stream=stream)
    assert found.count is None
    paths = [Path("a.jpg"), Path(" b c.jpg"), Path(os.fsdecode(b"caf\xe9.jpg"))]
    assert list(found.paths) == paths


class Endless(io.RawIOBase):
    """Counts the lines that are asked for."""

    def __init__(self) -> None:
        self.lines = 0

    def __next__(self) -> bytes:
        self.lines += 1
        return b"a.jpg\n"

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]
        return self


def test_standard_input_is_read_as_needed() -> None:
    stream = Endless()
    paths = find_inputs("-", stream=stream).paths  # type: ignore[arg-type]
    assert list(itertools.islice(paths, 3)) == [Path("a.jpg")] * 3
    assert stream.lines == 3


@pytest.mark.parametrize("url", ["http://x.org/a.jpg", "https://x.org", "s3://b/k", "file:///a"])
def test_urls_are_refused(url: str) -> None:
    with pytest.raises(DataError, match=r"input: .* is a URL") as caught:
        find_inputs(url)
    assert "\n" not in str(caught.value)
    found = find_inputs("-", stream=io.BytesIO(f"a.jpg\n{url}\n".encode()))
    with pytest.raises(DataError, match=r"standard input, line 2: .* is a URL"):
        list(found.paths)


def test_without_standard_input_there_are_no_paths() -> None:
    with pytest.raises(DataError, match="no standard input"):
        find_inputs("-")


def test_folders_globs_and_files_are_those_of_discover(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("10.jpg", "9.jpg", "in/a.png", "notes.txt"):
        (tmp_path / name).touch()
    folder = find_inputs(str(tmp_path))
    assert folder.count == 3
    names = [path.relative_to(tmp_path).as_posix() for path in folder.paths]
    assert names == ["9.jpg", "10.jpg", "in/a.png"]
    assert list(find_inputs(f"{tmp_path}/*.jpg").paths) == [tmp_path / "9.jpg", tmp_path / "10.jpg"]
    assert list(find_inputs(f"{tmp_path}/notes.txt").paths) == [tmp_path / "notes.txt"]
