"""By what images are known again."""

import os
import pickle
from pathlib import Path

import pytest

from finetune.data.stamps import Stamp, Stamps, hash_file, read_stamps, write_stamps
from finetune.errors import DataError

DIGEST = "0123456789abcdef" * 4


def stamp_of(path: Path) -> Stamp:
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, hash_file(path).hex())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    stamps = {
        "a/1.png": Stamp(0, -5, DIGEST),
        'b/"2", é.png': Stamp(2**62, 2**62, DIGEST[::-1]),
        os.fsdecode(b"c/bl\xfcte.jpg"): Stamp(3, 4, DIGEST),
    }
    write_stamps(tmp_path / "images.csv", stamps)
    assert read_stamps(tmp_path / "images.csv") == stamps
    first = (tmp_path / "images.csv").read_bytes().splitlines()[0]
    assert first == b"path,size,mtime_ns,sha256"


@pytest.mark.parametrize(
    "row",
    [
        f"-1,2,{DIGEST}",
        f"x,2,{DIGEST}",
        f"1,2.5,{DIGEST}",
        f"{2**63},2,{DIGEST}",
        f"1,{2**63},{DIGEST}",
        f"1,2,{DIGEST[1:]}",
        f"1,2,{DIGEST[:-1]}g",
        f"1,2,{'ab ' * 32}",
        "1,2,",
        f"{'9' * 5000},2,{DIGEST}",
    ],
)
def test_a_row_that_nobody_wrote_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "images.csv"
    path.write_text(f"path,size,mtime_ns,sha256\na.png,1,2,{DIGEST}\nb.png,{row}\n")
    with pytest.raises(DataError, match=r"images\.csv, line 3: got .* expected a size, a time"):
        read_stamps(path)


def test_the_largest_numbers_pass(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    largest = 2**63 - 1
    stamps = Stamps([Stamp(largest, largest, DIGEST), Stamp(0, -largest, DIGEST)])
    assert stamps[0] == (largest, largest, DIGEST)
    assert stamps[1] == (0, -largest, DIGEST)
    assert all(stamps.has_changed(index, path) for index in (0, 1))


def test_only_another_content_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    stamps = Stamps([stamp_of(path), None])
    assert not stamps.has_changed(0, path)
    os.utime(path, ns=(1, 1))
    assert not stamps.has_changed(0, path)
    assert stamps[0].mtime_ns == 1
    path.write_bytes(b"x" * 2_999_999 + b"y")
    os.utime(path, ns=(2, 2))
    assert stamps.has_changed(0, path)
    assert not stamps.has_changed(1, path)  # nothing is known of it


def test_a_pipe_in_place_of_a_file_is_a_change_and_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    stamps = Stamps([stamp_of(path)])
    path.unlink()
    os.mkfifo(path)
    assert stamps.has_changed(0, path)


def test_a_file_that_is_gone_is_not_a_change(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Stamps([Stamp(1, 2, DIGEST)]).has_changed(0, tmp_path / "gone")


def test_they_travel_to_a_worker_and_are_small() -> None:
    stamps = Stamps([Stamp(index, index, DIGEST) for index in range(1000)])
    packed = pickle.dumps(stamps)
    assert len(packed) < 1000 * 48 + 1000
    assert pickle.loads(packed)[999] == Stamp(999, 999, DIGEST)
    assert len(stamps) == 1000
