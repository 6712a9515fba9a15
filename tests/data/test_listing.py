"""What stands in a folder, and what is left out."""

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.listing import (
    IMAGE_SUFFIXES,
    SUFFIX_LIST,
    Skipped,
    has_image_suffix,
    is_left_over,
    list_folder,
    nearest_sibling,
    walk_images,
)
from finetune.errors import DataError


def make(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def test_a_folder_has_folders_and_images(tmp_path):
    make(tmp_path, "b/1.jpg", "a/c/2.jpg", "10.jpg", "9.PNG", "notes.txt", "scan")
    skipped = []
    assert list_folder(tmp_path, "", skipped) == (["a", "b"], ["10.jpg", "9.PNG"])
    assert skipped == [Skipped("notes.txt", "no image suffix"), Skipped("scan", "no image suffix")]
    assert list_folder(tmp_path, "a", []) == (["a/c"], [])
    assert list_folder(tmp_path, "a/c", []) == ([], ["a/c/2.jpg"])


def test_images_are_found_at_any_depth_and_below_one_folder_only(tmp_path):
    make(tmp_path, "a/1.jpg", "a/x/y/2.jpg", "a/x/n.txt", "b/3.jpg")
    skipped = []
    assert sorted(walk_images(tmp_path, "a", skipped)) == ["a/1.jpg", "a/x/y/2.jpg"]
    assert [item.path for item in skipped] == ["a/x/n.txt"]
    assert len(list(walk_images(tmp_path, "", []))) == 3


def test_left_overs_are_not_even_skipped(tmp_path):
    make(
        tmp_path,
        *("._1.jpg", ".hidden/2.jpg", ".git/3.jpg", "__MACOSX/a/4.jpg", "Thumbs.db"),
        *(".ipynb_checkpoints/5.jpg", "Desktop.ini", ".DS_Store"),
    )
    skipped = []
    assert list_folder(tmp_path, "", skipped) == ([], [])
    assert skipped == []


def test_symbolic_links_are_reported_and_not_followed(tmp_path):
    make(tmp_path, "a/1.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "a/2.jpg").symlink_to(tmp_path / "a/1.jpg")
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "nowhere")
    skipped = []
    assert list(walk_images(tmp_path, "", skipped)) == ["a/1.jpg"]
    assert [item.path for item in skipped] == ["a/2.jpg", "a/gone.jpg", "a/loop"]
    assert {item.reason for item in skipped} == {"symbolic link, not followed"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_socket_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.jpg")
        skipped = []
        assert list_folder(tmp_path, "", skipped) == ([], [])
    assert [item.path for item in skipped] == ["pipe.jpg", "socket.jpg"]
    assert {item.reason for item in skipped} == {"neither a file nor a folder"}


def test_names_that_are_not_utf8_survive(tmp_path):
    name = b'caf\xe9\n".jpg'
    (tmp_path / os.fsdecode(name)).write_bytes(b"here")
    [path] = walk_images(tmp_path, "", [])
    assert os.fsencode(path) == name
    assert (tmp_path / path).read_bytes() == b"here"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_named(tmp_path):
    (tmp_path / "b").mkdir(mode=0)
    with pytest.raises(DataError, match="b cannot be listed: Permission denied"):
        list_folder(tmp_path, "b", [])


@pytest.mark.parametrize(
    ("name", "reason"), [("gone", "No such file or directory"), ("1.jpg", "Not a directory")]
)
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, name, reason):
    make(tmp_path, "1.jpg")
    with pytest.raises(DataError, match=f"{name} cannot be listed: {reason}"):
        list_folder(tmp_path, name, [])


@given(st.sampled_from(sorted(IMAGE_SUFFIXES)), st.text().filter(lambda text: "/" not in text))
def test_a_suffix_decides_in_any_case(suffix, stem):
    assert has_image_suffix(f"x{stem}{suffix}")
    assert has_image_suffix(f"x{stem}{suffix.upper()}")
    assert not has_image_suffix(suffix)
    assert not has_image_suffix(f"x{stem}{suffix}~")
    assert suffix in SUFFIX_LIST.split(", ")


@pytest.mark.parametrize("name", [".x", "._1.jpg", "__MACOSX", "thumbs.db", "DESKTOP.INI"])
def test_what_programs_leave(name):
    assert is_left_over(name)


@pytest.mark.parametrize("name", ["x", "macosx", "thumbs.db.jpg", "x.DS_Store"])
def test_what_people_leave(name):
    assert not is_left_over(name)


def test_the_nearest_name_beside_a_path(tmp_path):
    make(tmp_path, "images/1.jpg")
    assert nearest_sibling(tmp_path / "image") == " Did you mean `images`?"
    assert nearest_sibling(tmp_path / "quite another") == ""
    assert nearest_sibling(tmp_path / "gone" / "image") == ""
