"""What hostile files are made from: a run that ended, and things that would run if they could."""

import io
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.cli import main

QUICK = (
    "model=nano",
    "model.pretrained=false",
    "model.image_size_px=32",
    "augmentation=light",
    "trainer=cpu",
    "trainer.epochs=2",
    "trainer.batch_size=16",
    "optimizer.lr=3e-3",
    "dataset.workers=0",
    "evidence=none",
)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


class EvilByEval(Evil):
    """The same, in one line of Python."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').mkdir({self.canary!r})",)


class Place:
    """Where a hostile file is made.

    Attributes:
        folder: empty, for the case alone.
        canary: a folder that nobody may make.
        images: of two classes; not to be changed.
    """

    def __init__(
        self, folder: Path, canary: Path, images: Path, request: pytest.FixtureRequest
    ) -> None:
        self.folder = folder
        self.canary = canary
        self.images = images
        self._request = request
        self.evil = Evil(canary)
        self.evil_by_eval = EvilByEval(canary)

    @property
    def finished(self) -> Path:
        """A run, trained where somebody asks for it; not to be changed."""
        found: Path = self._request.getfixturevalue("finished")
        return found

    def pickled(
        self, evil: str = "evil", *, is_bare: bool = False, is_legacy: bool = False
    ) -> bytes:
        """Give a file of ``torch.save``, or a bare pickle, that holds something to run."""
        values = {"state_dict": {"conv1.weight": torch.ones(2)}, "more": getattr(self, evil)}
        if is_bare:
            return pickle.dumps(values)
        file = io.BytesIO()
        torch.save(values, file, _use_new_zipfile_serialization=not is_legacy)
        return file.getvalue()

    def copy_run(self, *, is_finished: bool = True) -> Path:
        """Copy the run, large files as links; what was interrupted has no figures yet."""
        run = self.folder / "run"
        shutil.copytree(self.finished, run, copy_function=_copy_or_link)
        if not is_finished:
            for name in ("metrics.json", "model.json", "model.safetensors"):
                (run / name).unlink()
        return run


def _copy_or_link(source: str, target: str) -> None:
    if Path(source).stat().st_size > 1_000_000:
        os.link(source, target)
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Return the settings of a training that takes seconds."""
    return QUICK


@pytest.fixture(scope="session")
def finished(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a training that ended; do not change it."""
    runs = tmp_path_factory.mktemp("runs")
    words = [f"dataset.root={stripes}", f"runs={runs}", "name=first", "dataset.test_fraction=0.2"]
    assert main(["train", *QUICK, *words]) == 0
    return runs / "stripes" / "first"


@pytest.fixture
def place(tmp_path: Path, stripes: Path, request: pytest.FixtureRequest) -> Place:
    """Give room for one hostile file."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    return Place(folder, tmp_path / "canary", stripes, request)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Record whom anybody wants to talk to; nobody is reached."""
    asked: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


@pytest.fixture
def assert_refused(
    place: Place, capsys: pytest.CaptureFixture[str], connections: list[object]
) -> Callable[[list[str], str], None]:
    """Return a function that runs a command line, which must be refused in a few clear words.

    It takes the words, and what the message has to name.
    """

    def check(words: list[str], named: str) -> None:
        status = main(words)
        message = capsys.readouterr().err
        assert not place.canary.exists()
        assert connections == []
        assert status == 2, message
        assert message.startswith(("ConfigError: ", "DataError: ", "ModelError: ", "RunError: "))
        assert named in message
        assert "Traceback" not in message
        assert len(message) < 1200
        assert message.count("\n") <= 8
        assert not set(message) & {"\x1b", "\x07", "\0", "\x9b", "\u202e"}, ascii(message)

    return check
