from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import ConfigError
from finetune.prediction import features
from finetune.prediction.features import npy_header, open_features
from finetune.prediction.predict import Prediction


def prediction(name: str, *numbers: float) -> Prediction:
    row = np.array(numbers, np.float32)
    return Prediction(Path(name), "a", 0.5, (0.5, 0.5), features=row)


ERROR = Prediction(Path("broken.jpg"), None, None, (), "damaged")
ROWS = [prediction("a.jpg", 1, -2.5, 3), ERROR, prediction("b.jpg", 4, 5, 6)]


def write(path: Path, rows: Iterable[Prediction]) -> None:
    with open_features(path, 3) as writer:
        for row in rows:
            writer.write(row)


def test_npy_has_a_row_for_each_image_and_nan_for_errors(tmp_path: Path) -> None:
    write(tmp_path / "f.npy", ROWS)
    found = np.load(tmp_path / "f.npy")
    assert found.dtype == np.float32
    expected = np.array([[1, -2.5, 3], [np.nan] * 3, [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(found, expected)
    assert np.load(tmp_path / "f.npy", mmap_mode="r").shape == (3, 3)


def test_npy_is_what_numpy_writes(tmp_path: Path) -> None:
    write(tmp_path / "f.npy", [ROWS[0]] * 20)
    np.save(tmp_path / "expected.npy", np.array([[1, -2.5, 3]] * 20, np.float32))
    assert (tmp_path / "f.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


@given(st.integers(0, 10**15), st.integers(1, 10**5))
def test_the_header_never_grows(count: int, width: int) -> None:
    assert len(npy_header((count, width))) == len(npy_header((0, width)))


def test_parquet_has_a_list_of_fixed_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_MAX_NUMBERS_PER_GROUP", 6)
    write(tmp_path / "f.parquet", ROWS)
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert file.num_row_groups == 2
    table = file.read()
    assert table.schema.field("features").type.list_size == 3
    assert table.to_pylist() == [
        {"path": "a.jpg", "features": [1, -2.5, 3]},
        {"path": "broken.jpg", "features": None},
        {"path": "b.jpg", "features": [4, 5, 6]},
    ]


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_nothing_leaves_an_empty_table(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [])
    rows = np.load(tmp_path / name) if name == "f.npy" else pq.read_table(tmp_path / name)
    assert rows.shape == ((0, 3) if name == "f.npy" else (0, 2))


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")

    def rows() -> Iterator[Prediction]:
        yield ROWS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(path, rows())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_suffixes_and_places_are_refused_by_their_key(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "f.csv", r"output_features: got .*\.npy or \.parquet"),
        (Path(__file__) / "f.npy", "output_features: cannot write"),
    ):
        with pytest.raises(ConfigError, match=message), open_features(path, 3):
            pass
