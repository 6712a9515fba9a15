"""The names of the cache's folders, and who may own them."""

import os
import sys
from pathlib import Path

import pytest

from finetune.cache import CacheDirectory, find_cache, open_cache_folder
from finetune.errors import RunError


def test_names_look_at_nothing(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path / "cache")
    folders = [cache.audits, cache.downloads, cache.features, cache.images]
    assert [folder.name for folder in folders] == ["audits", "downloads", "features", "images"]
    assert {folder.parent for folder in folders} == {cache.path}
    assert not cache.path.exists()


def test_a_given_folder_is_taken(tmp_path: Path) -> None:
    assert find_cache(tmp_path / "mine").path == tmp_path / "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="XDG's folders are Linux's")
def test_the_users_own_folder_is_xdgs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_cache(None).images == tmp_path / "finetune" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find_cache(None).path == tmp_path / "home" / ".cache" / "finetune"


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_folder_is_made_for_its_user_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = open_cache_folder(tmp_path / "new" / "audits")
    finally:
        os.umask(before)
    assert folder == tmp_path / "new" / "audits"
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "file").touch()
    assert open_cache_folder(folder) == folder
    assert (folder / "file").exists()


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(RunError) as caught:
        open_cache_folder(tmp_path)
    assert str(caught.value) == (
        f"the cache {tmp_path} belongs to another user; expected one of your own. Name another "
        "folder: cache_folder=FOLDER."
    )


@pytest.mark.parametrize(
    ("name", "reason"), [("file", "File exists"), ("file/audits", "Not a directory")]
)
def test_a_file_in_the_way_is_named(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunError, match=f"{name} cannot be made: {reason}. Name another folder"):
        open_cache_folder(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"
