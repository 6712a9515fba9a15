"""Files that are seen only when whole."""

from pathlib import Path

import pytest

from finetune.errors import ConfigError
from finetune.prediction.outputs import check_format, replacing_output, writable_place

FORMATS = (".csv", ".jsonl")


def test_the_suffix_is_read_in_any_case() -> None:
    assert check_format("output", Path("A.CSV"), FORMATS) == ".csv"


@pytest.mark.parametrize("name", ["a.txt", "a", "csv", "a.csv.gz"])
def test_another_suffix_is_refused_by_the_name_of_the_key(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^table: got `.*` *, expected .* \.csv or \.jsonl"):
        check_format("table", Path(name), FORMATS)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    with replacing_output(path) as stream:
        stream.write(b"rows")
        assert not path.exists()
    assert path.read_bytes() == b"rows"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing_output(path) as stream:
            stream.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with replacing_output(link) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_folder_and_a_place_below_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features: cannot write .*it is a folder"):
        writable_place(tmp_path, "features")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="features: cannot write"):
        writable_place(tmp_path / "file" / "a.npy", "features")
