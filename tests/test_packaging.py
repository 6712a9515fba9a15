"""The wheel: what it holds, and that it works where it is unpacked."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_every_config_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    configs = [path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")]
    assert len(configs) > 30
    assert {f"finetune/{name}" for name in configs} <= names
    assert {"finetune/py.typed", "finetune/serving/page.html"} <= names
    assert {"finetune/models/nano.safetensors", "finetune/models/nano.md"} <= names
    assert not any(name.startswith(("tests/", "data/", "benchmarks/")) for name in names)


def test_an_unpacked_wheel_composes_and_looks_at_a_folder(
    wheel: Path, stripes: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # -I would drop the folder; -P keeps the current one, a checkout perhaps, from being first.
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import finetune.cli, finetune.usage\n"
        "assert 'site' in finetune.usage.CONF.parts, finetune.usage.CONF\n"
        "sys.exit(finetune.cli.main(sys.argv[1:]))"
    )
    words = [str(tmp_path / "site"), "inspect", f"dataset.root={stripes}"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing is wrong with these images." in done.stdout


def test_the_lock_names_no_index_and_pins_every_package_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    assert "--find-links" not in lock
    blocks = [block for block in lock.replace("\\\n", " ").splitlines() if block.strip()]
    assert len(blocks) > 50
    for block in blocks:
        assert "==" in block.split()[0], block[:80]
        assert "--hash=sha256:" in block, block[:80]
