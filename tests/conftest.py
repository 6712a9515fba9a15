"""What several tests need: small images that can be learned, and the real ones where they are."""

import os

# One thread: two would wait for each other more than they compute, on images this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import PIL.Image
import pytest

# A shared machine is slow at times; a deadline in milliseconds would fail for no fault.
hypothesis.settings.register_profile("finetune", deadline=None)
hypothesis.settings.load_profile("finetune")

# Programs in the background of a shell inherit that Ctrl-C is ignored, those under nohup that the
# end of the terminal is, and so would those that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_outer_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `make test` exports from the programs under test."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "FINETUNE_PROGRAM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep audits of test images out of the user's cache, and the user's out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images and weights; skip where there is none."""
    folder = os.environ.get("FINETUNE_REAL_DATA")
    if not folder:
        pytest.skip("FINETUNE_REAL_DATA names no folder of real images")
    return Path(folder)


def write_stripes(folder: Path, *, count: int, size_px: int = 24, horizontal: bool) -> None:
    """Write images of noisy stripes; their direction is easy to learn."""
    folder.mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng([index, horizontal])
        wave = 90 * np.sin(np.arange(size_px) * rng.uniform(0.8, 1.6) + rng.uniform(0, 6))
        image = 128 + np.tile(wave, (size_px, 1)) + rng.normal(0, 20, (size_px, size_px))
        image = np.clip(image.T if horizontal else image, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(image).save(folder / f"{index:03d}.png")


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two classes, 40 images each, in class folders; do not change it."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    write_stripes(root / "lying", count=40, horizontal=True)
    write_stripes(root / "standing", count=40, horizontal=False)
    return root
