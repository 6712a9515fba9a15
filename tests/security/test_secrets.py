"""What stands in the environment reaches no file, no log and no message of ours.

Real runs, in processes of their own, with made-up secrets in their environment. Then every byte
that they left is searched: also inside archives, compressed files, tables and pictures of pages.
"""

import base64
import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIcanary1bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "canary2FwoGZXIvYXdzEBYaDEXAMPLETOKEN",
    "HF_TOKEN": "hf_canary3QmZkTbVhLnPdRsWxYcAeGjKo",
    "WANDB_API_KEY": "canary4d1e2f3a4b5c6d7e8f90123456789abcdef",
    "MLFLOW_TRACKING_PASSWORD": "canary5correcthorsebatterystaple",
    "GITHUB_TOKEN": "ghp_canary6aBcDeFgHiJkLmNoPqRsTuVwXyZ",
}
REFERENCED = {"OUR_OWN_SECRET": "canary7thevaluebehindareference"}
"""What the settings name, as ``${oc.env:OUR_OWN_SECRET}``."""
ALL = {**SECRETS, **REFERENCED}


def forms(secret):
    """Give the bytes of a secret, as they are and as others may write them."""
    content = secret.encode()
    yield content
    yield content.hex().encode()
    yield secret.encode("utf-16-le")
    for shift in range(3):  # base64 begins at any of three places
        encoded = base64.b64encode(bytes(shift) + content)
        yield encoded[4:-4]


PATTERN = f"{REFERENCED['OUR_OWN_SECRET']}|[0-9]+"
"""So it can be a pattern for groups, too."""

NEEDLES = {form: name for name, secret in ALL.items() for form in forms(secret)}


def contents(path):
    """Give the bytes of a file, and of whatever is in it."""
    content = path.read_bytes()
    yield path.name, content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield f"{path.name}/{member}", archive.read(member)
    if content[:2] == b"\x1f\x8b":
        yield f"{path.name} (gzip)", gzip.decompress(content)
    if content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        yield f"{path.name} (table)", repr([table.schema.metadata, table.to_pydict()]).encode()
    if path.suffix == ".html":
        for index, found in enumerate(re.findall(rb"base64,([A-Za-z0-9+/=]+)", content)):
            yield f"{path.name} (picture {index})", base64.b64decode(found)


def search(folder):
    """Find secrets below a folder.

    Returns:
        What was found where, and how many files, contents and bytes were searched.
    """
    found, files, parts, size = [], 0, 0, 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        files += 1
        names = {path.relative_to(folder).as_posix(): os.fsencode(path.name)}
        for name, content in [*contents(path), *names.items()]:
            parts += 1
            size += len(content)
            found += [(name, secret) for form, secret in NEEDLES.items() if form in content]
    return found, f"{files} files, {parts} contents, {size / 1e6:.1f} MB"


class Runs:
    """Runs the tool in processes of their own.

    Attributes:
        folder: of everything that they write.
    """

    def __init__(self, folder):
        self.folder = folder
        for name in ("home", "temporary", "cache"):
            (folder / name).mkdir()
        self._count = 0

    def __call__(self, *words):
        """Run a command line; give its status, and what it said, which is also kept in a file."""
        places = {
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "temporary"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        done = subprocess.run(
            [sys.executable, "-m", "finetune", *words],
            env={**os.environ, **places, **ALL, "OUR_OWN_SECRET": PATTERN},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self._count += 1
        (self.folder / f"said_{self._count}.txt").write_text(done.stdout + done.stderr)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "place").mkdir()
    return Runs(tmp_path / "place")


def test_the_search_finds_what_is_hidden(tmp_path):
    secret = ALL["HF_TOKEN"].encode()
    (tmp_path / "plain").write_bytes(b"..." + secret)
    (tmp_path / "hex").write_text(secret.hex())
    for shift in range(3):
        (tmp_path / f"base64_{shift}").write_bytes(base64.b64encode(b"x" * shift + secret + b"yy"))
    (tmp_path / "wide").write_bytes(ALL["HF_TOKEN"].encode("utf-16"))
    (tmp_path / "gz").write_bytes(gzip.compress(secret))
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", secret * 9)
    pq.write_table(pa.table({"x": [ALL["HF_TOKEN"]]}), tmp_path / "parquet", compression="zstd")
    page = b"<img src='data:image/png;base64," + base64.b64encode(b"PNG" + secret) + b"'>"
    (tmp_path / "page.html").write_bytes(page)
    (tmp_path / f"name_{ALL['HF_TOKEN']}").touch()
    found, counted = search(tmp_path)
    print(counted)
    files = {name.split("/")[0].split(" ")[0] for name, _ in found}
    assert files == {path.name for path in tmp_path.iterdir()}
    assert {name for _, name in found} == {"HF_TOKEN"}


def test_no_artefact_holds_a_secret(runs, stripes, quick):
    """A training with all evidence, and what other verbs make of it."""
    settings = [word for word in quick if not word.startswith("evidence")]
    settings += [f"dataset.root={stripes}", "runs=runs", "name=first", "logger=tensorboard"]
    settings += ["dataset.group_pattern=${oc.env:OUR_OWN_SECRET}", "dataset.cache=disk"]
    run = "run=runs/stripes/first"
    for words in (
        ["train", *settings, "evidence.resamples=50", "evidence.pictures=4", "debug=true"],
        ["evaluate", run, "split=val", "evidence.resamples=100", "workers=0"],
        ["export", run, "format=onnx", "output=model.onnx"],
        ["predict", run, f"input={stripes}", "output=labels.parquet", "workers=0"],
    ):
        status, said = runs(*words)
        assert status == 0, said
    written = {path.name for path in runs.folder.rglob("*")}
    expected = {"report.html", "README.md", "model.ts", "model.onnx", "last.ckpt", "run.json"}
    assert expected <= written
    assert any("tfevents" in name for name in written)
    assert len(list((runs.folder / "cache").rglob("*.*"))) >= 2
    assert (
        "${oc.env:OUR_OWN_SECRET}" in (runs.folder / "runs/stripes/first/config.yaml").read_text()
    )
    found, counted = search(runs.folder)
    print(counted)
    assert found == []


FAILING = {
    "a value of a wrong kind": ["seed=${oc.env:OUR_OWN_SECRET}"],
    "a model that nobody knows": ["model.backbone=${oc.env:OUR_OWN_SECRET}"],
    "a pattern that is none": ["dataset.group_pattern='(${oc.env:OUR_OWN_SECRET}'"],
    "a pattern that matches nothing": ["dataset.group_pattern='x${oc.env:OUR_OWN_SECRET}x'"],
    "images that are not there": ["dataset.root=not/there"],
    "a class that is not chosen": ["augmentation.transforms=[{name: Nothing}]"],
    "a rate at which all is lost": ["optimizer.lr=1e30", "trainer.gradient_clip=null"],
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failure_shows_no_secret_even_with_its_traceback(runs, stripes, quick, case):
    words = [f"dataset.root={stripes}", "runs=runs", "debug=true", *FAILING[case]]
    status, said = runs("train", *quick, *words)
    assert status in (1, 2), said
    assert "Traceback" in said
    assert search(runs.folder)[0] == [], said


def test_a_run_that_breaks_shows_no_secret(runs, stripes, quick):
    (runs.folder / "data").mkdir()
    for label in ("lying", "standing"):
        shutil.copytree(stripes / label, runs.folder / "data" / label)
    (runs.folder / "runs" / "data" / "first").mkdir(parents=True)
    words = [*quick, "dataset.root=data", "runs=runs", "name=first", "debug=true"]
    status, said = runs("train", *words)
    assert status == 2, said
    assert search(runs.folder)[0] == []


@pytest.mark.parametrize("key", ["logger.tracking_uri", "logger.experiment_name"])
def test_a_password_in_an_address_is_refused(runs, stripes, quick, key):
    secret = SECRETS["MLFLOW_TRACKING_PASSWORD"]
    address = f"{key}=http://me:{secret}@127.0.0.1:9/x"
    words = [f"dataset.root={stripes}", "runs=runs", "logger=mlflow", address]
    status, said = runs("train", *quick, *words)
    assert status == 2
    assert "got an address with a password" in said
    assert not (runs.folder / "runs").exists()
    assert search(runs.folder)[0] == []
