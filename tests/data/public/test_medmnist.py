import dataclasses
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from finetune.data.decode import decode_image, read_header
from finetune.data.discover import discover_folder
from finetune.data.public.download import PublicFile
from finetune.data.public.medmnist import PNEUMONIA_MNIST, Collection, is_written, write_collection
from finetune.errors import DataError

COUNTS = {"train": 9, "val": 4, "test": 5}
SMALL = Collection(
    name="PneumoniaMNIST",
    terms="Licence.",
    file=PublicFile("http://127.0.0.1:9/", "md5:0", 0),
    class_names=("normal", "pneumonia"),
    counts=COUNTS,
    side_px=6,
)


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    content = {}
    for split, count in COUNTS.items():
        content[f"{split}_images"] = rng.integers(0, 256, (count, 6, 6), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 3 > 0)[:, None].astype(
            "u1"
        )
    return {name: array for name, array in (content | changes).items() if array is not None}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.npz"
    np.savez_compressed(path, **arrays())
    return path


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_every_image_is_written_once_as_it_is(archive, tmp_path):
    root = tmp_path / "data" / "medical"
    written = []
    assert not is_written(SMALL, root)
    write_collection(SMALL, archive, root, on_progress=written.append)
    assert is_written(SMALL, root)
    assert written == list(range(1, 19))
    folder = discover_folder(root)
    assert folder.class_names == ("normal", "pneumonia")
    assert folder.skipped == ()
    content = arrays()
    for split, count in COUNTS.items():
        samples = [sample for sample in folder.samples if sample.split == split]
        assert len(samples) == count
        for sample in samples:
            index = int(Path(sample.path).stem)
            assert sample.labels == (SMALL.class_names[content[f"{split}_labels"][index, 0]],)
            assert read_header(root / sample.path).mode == "L"
            pixels = decode_image(root / sample.path)[..., 0]
            assert np.array_equal(pixels, content[f"{split}_images"][index])
    assert tree(tmp_path) == sorted(["archive.npz", *(f"data/medical/{p}" for p in tree(root))])


def test_a_complete_folder_is_left_alone(archive, tmp_path):
    root = tmp_path / "medical"
    write_collection(SMALL, archive, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    archive.unlink()
    write_collection(SMALL, archive, root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_something_else_is_not_touched(archive, tmp_path):
    root = tmp_path / "medical"
    write_collection(SMALL, archive, root)
    (root / "train" / "normal" / "0000.png").unlink()
    before = tree(root)
    for call in (
        lambda: is_written(SMALL, root),
        lambda: write_collection(SMALL, archive, root),
    ):
        with pytest.raises(DataError, match="is not the PneumoniaMNIST data set"):
            call()
    assert tree(root) == before


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_archive_is_refused(archive, tmp_path, kept):
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(DataError, match="is damaged, or not PneumoniaMNIST"):
        write_collection(SMALL, archive, tmp_path / "medical")
    assert tree(tmp_path) == ["archive.npz"]


def test_a_flipped_byte_is_refused_or_harmless(archive, tmp_path):
    whole = archive.read_bytes()
    refused, positions = 0, range(0, len(whole), 7)
    for position in positions:
        flipped = bytes([whole[position] ^ 0xFF])
        archive.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        root = tmp_path / str(position)
        try:
            write_collection(SMALL, archive, root)
        except DataError:
            refused += 1
            assert not root.exists()
        else:
            assert is_written(SMALL, root)
    sys.stdout.write(f"{refused} of {len(positions)} refused\n")
    assert refused > len(positions) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": None}, "val_images is not a file"),
        ({"test_labels": None}, "test_labels is not a file"),
        ({"val_images": np.zeros((3, 6, 6), np.uint8)}, r"holds uint8 \[3, 6, 6\]; expected"),
        ({"val_images": np.zeros((4, 6, 6, 3), np.uint8)}, r"expected integers \[4, 6, 6\]"),
        ({"val_images": np.zeros((4, 6, 6), np.float32)}, r"holds float32 \[4, 6, 6\]"),
        ({"val_images": np.full((4, 6, 6), 256, np.int16)}, "holds 256 to 256; expected 0 to 255"),
        ({"val_labels": np.zeros(4, np.uint8)}, r"expected integers \[4, 1\]"),
        ({"val_labels": np.full((4, 1), 2, np.uint8)}, "holds 2 to 2; expected 0 to 1"),
        ({"val_labels": np.full((4, 1), -1)}, "holds -1 to -1"),
        ({"val_labels": np.array([[{}]] * 4, dtype=object)}, "allow_pickle=False"),
    ],
)
def test_other_content_is_refused_before_anything_is_written(tmp_path, changes, message):
    np.savez(tmp_path / "archive.npz", **arrays(**changes))
    with pytest.raises(DataError, match=message):
        write_collection(SMALL, tmp_path / "archive.npz", tmp_path / "medical")
    assert tree(tmp_path) == ["archive.npz"]


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    for name in ("array.npy", "other.npz", "missing.npz"):
        with pytest.raises(DataError, match="is damaged, or not PneumoniaMNIST"):
            write_collection(SMALL, tmp_path / name, tmp_path / "medical")


def test_the_collection_is_the_published_one():
    assert PNEUMONIA_MNIST.num_images == 5856
    assert dataclasses.astuple(PNEUMONIA_MNIST.file) == (
        "https://zenodo.org/records/10519652/files/pneumoniamnist_224.npz?download=1",
        "md5:d6a3c71de1b945ea11211b03746c1fe1",
        214_384_716,
    )
