"""One small training that the tests of all verbs look at."""

import hashlib
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import finetune.exports.answering
import finetune.exports.gate
from finetune.cli import main

HERE = Path(__file__).parent
QUICK = (
    "model=nano",
    "model.pretrained=false",
    "model.image_size_px=32",
    "augmentation=light",
    "trainer=cpu",
    "trainer.epochs=3",
    "trainer.batch_size=16",
    "optimizer.lr=3e-3",
    "optimizer.backbone_lr_factor=1",
    "dataset.workers=0",
    "evidence=none",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Ask exported files in this process, which has torch already: it saves each training seconds.

    The tests of ``finetune export`` ask them in a fresh process, as users do.
    """
    with pytest.MonkeyPatch.context() as patch:
        # pytest asks this of every test, also of those in other folders.
        if item.path.parent == HERE and item.path.name != "test_export.py":
            here = finetune.exports.answering.main
            patch.setattr(finetune.exports.gate, "_answer_apart", here)
        return (yield)


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Return the settings of a training that takes seconds."""
    return QUICK


@pytest.fixture(scope="session")
def trained(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a training on the stripes; do not change it."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", f"dataset.root={stripes}", f"runs={runs}", "name=first", *QUICK]
    assert main([*words, "dataset.test_fraction=0.2", "evidence=full"]) == 0
    return runs / "stripes" / "first"


@pytest.fixture(scope="session")
def hash_tree() -> Callable[[Path], str]:
    """Return a function that hashes names and contents of all files below a folder."""

    def hash_of(root: Path) -> str:
        digest = hashlib.sha256()
        for path in sorted(root.rglob("*")):
            digest.update(str(path.relative_to(root)).encode())
            if path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()

    return hash_of
