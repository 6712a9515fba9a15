import os

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data import audit
from finetune.data.audit import audit_folder
from finetune.data.auditing import audit_cache
from finetune.data.discover import discover_folder


def write(path, seed, *, age_s=100.0):
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    set_age(path, age_s)


def set_age(path, age_s):
    mtime_ns = path.stat().st_mtime_ns - int(age_s * 1e9)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.fixture
def root(tmp_path):
    for index in range(6):
        folder = tmp_path / "root" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{index}.png", index)
    return tmp_path / "root"


@pytest.fixture
def examined(monkeypatch):
    """Return the names of the files that are decoded, as they are."""
    names = []
    original = audit.examine_files

    def spy(paths, **options):
        for path, report in zip(paths, original(paths, **options), strict=True):
            names.append(path.name)
            yield report

    monkeypatch.setattr(audit, "examine_files", spy)
    return names


def run(root, **options):
    return audit_folder(discover_folder(root), cache=root.parent / "cache", **options)


def file_of(root):
    (file,) = (root.parent / "cache").iterdir()
    return file


def test_a_second_run_decodes_nothing(root, examined):
    progress = []
    first = run(root)
    assert len(examined) == 6
    written = file_of(root).stat()
    examined.clear()
    assert run(root, on_progress=progress.append) == first
    assert examined == []
    assert progress == [6]
    now = file_of(root).stat()  # reading it may set st_atime
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert first.notes == ()


def test_what_changed_is_decoded_again(root, examined):
    first = run(root)
    examined.clear()
    write(root / "a/0.png", 77, age_s=50)
    (root / "b/1.png").unlink()
    write(root / "b/new.png", 78)
    second = run(root)
    assert sorted(examined) == ["0.png", "new.png"]
    assert second.digests["a/0.png"] != first.digests["a/0.png"]
    assert set(second.digests) == {
        "a/0.png",
        "a/2.png",
        "a/4.png",
        "b/3.png",
        "b/5.png",
        "b/new.png",
    }
    examined.clear()
    run(root)
    assert examined == []


def test_a_file_written_just_now_may_change_unseen(root, examined):
    write(root / "a/0.png", 1, age_s=0)
    for _ in range(2):
        examined.clear()
        run(root)
    assert examined == ["0.png"]


def test_a_refused_file_is_tried_again(root, examined):
    (root / "a/0.png").write_bytes(b"none")
    set_age(root / "a/0.png", 100)
    for _ in range(2):
        examined.clear()
        assert list(run(root).unreadable) == ["a/0.png"]
    assert examined == ["0.png"]


def test_other_rules_make_all_new(root, examined, monkeypatch):
    run(root)
    examined.clear()
    run(root, max_megapixels=1)
    assert len(examined) == 6
    monkeypatch.setattr(audit_cache, "VERSION", 0)
    run(root, max_megapixels=1)
    assert len(examined) == 12
    monkeypatch.setattr(PIL, "__version__", "0")
    run(root, max_megapixels=1)
    assert len(examined) == 18
    run(root, max_megapixels=1)
    assert len(examined) == 18


def test_a_part_of_the_folder_does_not_forget_the_rest(root, examined):
    run(root)
    folder = discover_folder(root)
    write(root / "a/0.png", 77, age_s=50)
    part = type(folder)(root, folder.class_names, folder.samples[:2], ())
    audit_folder(part, cache=root.parent / "cache")
    examined.clear()
    run(root)
    assert examined == []


def test_each_folder_has_its_own(root, tmp_path):
    run(root)
    other = tmp_path / "other"
    (root / "a").rename(root / "c")
    root.rename(other)
    run(other)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def damage(file):
    content = file.read_bytes()
    yield b""
    yield b"none"
    yield content[: len(content) // 2]
    yield content[:-8] + b"\xff\xff\xff\x7fPAR1"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60):
        yield (
            content[:place]
            + bytes([content[place] ^ 1 << int(rng.integers(8))])
            + content[place + 1 :]
        )


def test_a_damaged_file_is_never_believed(root, examined):
    first = run(root)
    file = file_of(root)
    for content in [*damage(file)]:
        file.write_bytes(content)
        assert run(root) == first


def test_a_damaged_file_is_written_anew(root, examined):
    run(root)
    file_of(root).write_bytes(b"none")
    run(root)
    examined.clear()
    run(root)
    assert examined == []


def test_a_foreign_table_is_ignored(root, examined):
    first = run(root)
    pq.write_table(pa.table({"path": [b"a/0.png"]}), file_of(root))
    assert run(root) == first
    assert len(examined) == 12


def test_a_folder_in_the_place_of_the_file_is_a_note(root):
    first = run(root)
    file = file_of(root)
    file.unlink()
    (file / "x").mkdir(parents=True)
    second = run(root)
    assert second.findings == first.findings
    assert len(second.notes) == 1
    assert "Nothing is kept for the next time" in second.notes[0]


def test_a_folder_that_cannot_be_made_is_a_note(root):
    (root.parent / "cache").write_text("a file")
    (note,) = run(root).notes
    assert "cache_folder=FOLDER" in note


def test_the_folder_of_another_user_is_not_read(root, examined, monkeypatch):
    run(root)
    examined.clear()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (note,) = run(root).notes
    assert "another user" in note
    assert len(examined) == 6


def test_an_interruption_keeps_what_is_done(root, examined):
    def stop(done):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, on_progress=stop)
    examined.clear()
    run(root)
    assert len(examined) == 2


def test_names_that_are_not_utf8(root, examined):
    name = os.fsdecode(b"caf\xe9\n.png")
    write(root / "a" / name, 9)
    run(root)
    examined.clear()
    assert f"a/{name}" in run(root).digests
    assert examined == []


def test_no_cache(root, tmp_path):
    assert audit_folder(discover_folder(root)).notes == ()
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
