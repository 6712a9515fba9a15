from pathlib import Path

import pytest

from finetune.data.public.placement import is_in_place, place_folder
from finetune.errors import DataError


def write(folder: Path) -> None:
    folder.mkdir()
    (folder / "image").write_text("content")


def is_complete(folder: Path) -> bool:
    return (folder / "image").is_file()


def place(root: Path, write=write) -> None:
    place_folder(root, write, is_complete=is_complete, name="tiny")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("is_there", [False, True])
def test_a_missing_or_empty_folder_is_filled(tmp_path, is_there):
    root = tmp_path / "above" / "root"
    if is_there:
        root.mkdir(parents=True)
    assert not is_in_place(root, is_complete=is_complete, name="tiny")
    place(root)
    assert is_in_place(root, is_complete=is_complete, name="tiny")
    assert names(root.parent) == ["root"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to("disk")
    place(tmp_path / "root")
    assert names(tmp_path / "disk") == ["image"]
    assert (tmp_path / "root").is_symlink()


def test_another_process_may_be_first(tmp_path):
    root = tmp_path / "root"

    def write_late(folder: Path) -> None:
        write(root)
        (root / "image").write_text("of the other")
        write(folder)

    place(root, write_late)
    assert (root / "image").read_text() == "of the other"
    assert names(tmp_path) == ["root"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    def fail(folder: Path) -> None:
        write(folder)
        raise error

    expected = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is DataError else None):
        place(tmp_path / "root", fail)
    assert names(tmp_path) == []


def test_something_else_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DataError, match=r"is not the tiny data set \(it holds mine\)"):
        place(tmp_path)
    with pytest.raises(DataError, match="it is a file"):
        place(tmp_path / "mine")
    with pytest.raises(DataError, match="below cannot be written"):
        place(tmp_path / "mine" / "below")
    assert names(tmp_path) == ["mine"]
