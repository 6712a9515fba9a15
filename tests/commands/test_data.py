"""``finetune data``: a public set in its folder, whole, with or without a network."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import finetune.commands.data
from finetune.cache import CacheDirectory
from finetune.cli import main
from finetune.data.discover import discover_folder
from finetune.data.public.download import PublicFile
from finetune.data.public.medmnist import Collection

COUNTS = {"train": 6, "val": 2, "test": 2}


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("publisher") / "small.npz"
    content = {}
    for split, count in COUNTS.items():
        content[f"{split}_images"] = np.full((count, 8, 8), 100, np.uint8)
        content[f"{split}_labels"] = np.arange(count)[:, None] % 2
    np.savez(path, **content)
    return path


@pytest.fixture
def server(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ThreadingHTTPServer]:
    """Serve the small set, and have the command take it for the large one."""
    handler = partial(Silent, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        file = PublicFile(
            url=f"http://127.0.0.1:{server.server_port}/small.npz",
            checksum=f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}",
            size_bytes=archive.stat().st_size,
        )
        small = Collection("Small", "Cite me.", file, ("normal", "pneumonia"), COUNTS, 8)
        monkeypatch.setattr(finetune.commands.data, "PNEUMONIA_MNIST", small)
        cache = CacheDirectory(tmp_path / "cache")
        monkeypatch.setattr(finetune.commands.data, "find_cache", lambda folder: cache)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.chdir(tmp_path)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_images_come_from_the_publisher_once(
    server: ThreadingHTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "dataset=medical"]) == 0
    output = capsys.readouterr().out
    assert f"http://127.0.0.1:{server.server_port}/small.npz" in output
    assert "10 images in data/medical. Cite me." in output
    folder = discover_folder(tmp_path / "data" / "medical")
    assert folder.class_names == ("normal", "pneumonia")
    assert len(folder.samples) == 10
    assert files(tmp_path / "cache") == []
    assert {path.name for path in tmp_path.iterdir()} == {"data", "cache"}

    server.shutdown()
    assert main(["data", "dataset=medical"]) == 0
    assert "data/medical holds all 10 images already" in capsys.readouterr().out


def test_without_a_network_it_says_how_to_bring_the_file(
    server: ThreadingHTTPServer,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FINETUNE_PROGRAM", "make")
    server.shutdown()
    server.server_close()
    assert main(["data", "dataset=medical"]) == 2
    error = capsys.readouterr().err
    assert f"DataError: http://127.0.0.1:{server.server_port}/small.npz cannot be fetched" in error
    assert "make data dataset=medical source=PATH" in error
    assert files(tmp_path) == []

    before = archive.stat().st_mtime_ns, archive.read_bytes()
    root = tmp_path / "else where"
    assert main(["data", "dataset=medical", f"source={archive}", f"dataset.root={root}"]) == 0
    assert "make inspect dataset=medical 'dataset.root=" in capsys.readouterr().out
    assert len(files(root)) == 10
    assert (archive.stat().st_mtime_ns, archive.read_bytes()) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_another_file_by_hand_is_refused(
    server: ThreadingHTTPServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_there: bool,
) -> None:
    source = tmp_path / "page.html"
    if is_there:
        source.write_text("<html>")
    assert main(["data", "dataset=medical", f"source={source}"]) == 2
    assert ("is not the file of" if is_there else "cannot be read") in capsys.readouterr().err
    assert source.exists() == is_there
    assert not (tmp_path / "data").exists()


def test_something_else_in_the_folder_is_an_error_before_the_download(
    server: ThreadingHTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "data" / "medical" / "cat" / "1.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    server.shutdown()
    assert main(["data", "dataset=medical"]) == 2
    assert "is not the Small data set (it holds cat)" in capsys.readouterr().err
    assert files(tmp_path) == [mine]


def test_a_failure_after_the_download_keeps_the_file(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.Image.save", Mock(side_effect=KeyboardInterrupt))
        assert main(["data", "dataset=medical"]) == 130
    assert [path.name for path in files(tmp_path)] == ["Small.npz"]
    server.shutdown()
    assert main(["data", "dataset=medical"]) == 0
    assert len(files(tmp_path)) == 10


def test_a_dataset_without_public_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "dataset=digits"]) == 2
    assert "finetune data dataset=medical" in capsys.readouterr().err
