"""No verb changes, adds or removes an input file."""

import hashlib
import shutil
from pathlib import Path

import PIL.Image
import pytest

from finetune.cli import main


def state(root: Path) -> str:
    """Hash names, contents, times of change and permissions of a whole tree."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        entry = (str(path.relative_to(root)), status.st_mtime_ns, status.st_mode, content)
        digest.update(repr(entry).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@pytest.fixture
def messy(stripes: Path, tmp_path: Path) -> Path:
    """Return a folder with what a cleverer tool might mend: damaged, misnamed, turned, copied."""
    root = tmp_path / "messy"
    shutil.copytree(stripes, root)
    (root / "lying" / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    shutil.copy(root / "lying" / "000.png", root / "lying" / "copy of 000.png")
    shutil.copy(root / "lying" / "001.png", root / "lying" / "misnamed.jpg")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    with PIL.Image.open(root / "lying" / "002.png") as image:
        image.save(root / "lying" / "turned.jpg", exif=exif)
    (root / "notes.txt").write_text("not an image")
    return root


def test_images_stay_as_they_are(messy: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    before = state(messy)
    out = tmp_path / "out"
    words = [f"dataset.root={messy}", f"cache_folder={tmp_path / 'cache'}"]
    assert main(["inspect", *words, f"output={out}", "model=nano"]) == 0
    assert state(messy) == before
    train = ["train", *words, f"runs={out}", "name=a", *quick, "trainer.epochs=1"]
    assert main([*train, "dataset.cache=disk"]) == 0
    assert state(messy) == before
    run = f"run={out / 'messy' / 'a'}"
    assert main(["evaluate", run]) == 0
    assert main(["predict", run, f"input={messy}", f"output={out / 'rows.csv'}"]) == 0
    assert main(["export", run, f"output={out / 'again.ts'}"]) == 0
    assert state(messy) == before


def test_a_manifest_stays_as_it_is(stripes: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    root = tmp_path / "tables"
    root.mkdir()
    rows = [
        f"{path.relative_to(stripes).as_posix()};{path.parent.name}"
        for path in sorted(stripes.rglob("*.png"))
    ]
    manifest = root / "labels.csv"
    manifest.write_bytes("\r\n".join(["path;label", *rows]).encode())
    before = state(root), state(stripes)
    words = [f"dataset.manifest={manifest}", f"dataset.root={stripes}"]
    out = tmp_path / "out"
    assert main(["inspect", *words, f"output={out}", "model=nano"]) == 0
    assert main(["train", *words, f"runs={out}", "name=a", *quick, "trainer.epochs=1"]) == 0
    run = f"run={out / 'labels' / 'a'}"
    assert main(["evaluate", run, f"manifest={manifest}", f"root={stripes}"]) == 0
    assert (state(root), state(stripes)) == before


def test_real_images_stay_as_they_are(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "data" / "brain_mri"
    before = state(root)
    assert main(["inspect", f"dataset.root={root}", f"output={tmp_path}"]) == 0
    assert state(root) == before
