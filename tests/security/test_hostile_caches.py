"""The cache: whatever lies there runs nothing, and what this user did not write is not believed.

audits/     Parquet: columns of numbers, bytes and short texts
downloads/  the publisher's file, whose checksum is known
features/   safetensors: tensors alone
images/     a format of our own: numbers and pixels
"""

import http.server
import io
import os
import pickle
import shutil
import stat
import struct
import threading
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finetune.cache import CacheDirectory, is_own_file, open_cache_folder
from finetune.data import audit
from finetune.data.discover import discover_folder
from finetune.data.image_cache import open_image_cache
from finetune.data.public.download import PublicFile, download
from finetune.errors import RunError
from finetune.training.feature_cache import open_feature_cache

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
KEYS = [bytes([index]) * 16 for index in range(3)]
PIXELS = np.full((4, 5, 3), 7, np.uint8)


def give_away(path):
    os.lchown(path, NOBODY, NOBODY)


def evil_parquet(place):
    """Give a table of a type that Arrow before 14.0.1 unpickled (CVE-2023-47248)."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    metadata[b"ARROW:extension:metadata"] = pickle.dumps(place.evil)
    field = pa.field("path", pa.binary(), metadata=metadata)
    sink = io.BytesIO()
    pq.write_table(pa.table([[b"a"]], schema=pa.schema([field])), sink)
    return sink.getvalue()


CONTENTS = {
    "a pickle": lambda place: place.pickled(),
    "a bare pickle": lambda place: place.pickled(is_bare=True),
    "an eval": lambda place: place.pickled("evil_by_eval", is_bare=True),
    "nothing": lambda place: b"",
    "zeros": lambda place: bytes(100_000),
    "a pickled type": evil_parquet,
    "a giant header": lambda place: struct.pack("<Q", 2**60) + b"{}",
    "PAR1": lambda place: b"PAR1" + b"\xff" * 1000 + b"\xff\xff\xff\x7fPAR1",
}


def only_file(folder):
    (file,) = folder.iterdir()
    return file


@pytest.fixture
def examined(monkeypatch):
    """Return the names of the images that are decoded for an audit."""
    names = []
    original = audit.examine_files

    def spy(paths, **options):
        for path, report in zip(paths, original(paths, **options), strict=True):
            names.append(path.name)
            yield report

    monkeypatch.setattr(audit, "examine_files", spy)
    return names


@pytest.fixture
def inspect(place, stripes, examined):
    """Return a function that inspects 80 images, and gives how many of them it decoded."""
    images = shutil.copytree(stripes, place.folder / "stripes")
    for path in images.rglob("*.png"):  # what was written just now is not kept
        os.utime(path, (1e9, 1e9))

    def run():
        examined.clear()
        found = audit.audit_folder(discover_folder(images), cache=place.folder / "cache")
        assert found.unreadable == {}
        assert not place.canary.exists()
        return len(examined)

    return run


@pytest.mark.parametrize("content", CONTENTS)
def test_an_audit_that_is_something_else_is_written_anew(place, inspect, content):
    assert inspect() == 80
    assert inspect() == 0
    only_file(place.folder / "cache").write_bytes(CONTENTS[content](place))
    assert inspect() == 80
    assert inspect() == 0


@as_root
def test_an_audit_of_another_user_is_written_anew(place, inspect):
    inspect()
    file = only_file(place.folder / "cache")
    give_away(file)
    assert inspect() == 80
    assert is_own_file(file)
    assert inspect() == 0


def test_an_audit_elsewhere_is_not_followed_and_stays(place, inspect):
    inspect()
    file = only_file(place.folder / "cache")
    elsewhere = file.rename(place.folder / "elsewhere.parquet")
    before = elsewhere.read_bytes()
    file.symlink_to(elsewhere)
    assert inspect() == 80
    assert not file.is_symlink()
    assert elsewhere.read_bytes() == before


def features(folder):
    return open_feature_cache(folder, key="0" * 64)


@pytest.fixture
def kept(place):
    """Keep the features of one image; give their folder, and the name of the image."""
    folder, digest = place.folder / "features", sha256(b"image").hexdigest()
    features(folder).add([digest], torch.ones(1, 4))
    assert len(features(folder).get([digest])) == 1
    return folder, digest


@pytest.mark.parametrize("content", CONTENTS)
def test_features_that_are_something_else_are_removed(place, kept, content):
    folder, digest = kept
    only_file(folder).write_bytes(CONTENTS[content](place))
    assert features(folder).get([digest]) == {}
    assert not place.canary.exists()
    assert list(folder.iterdir()) == []


@as_root
def test_features_of_another_user_are_not_believed(kept):
    folder, digest = kept
    give_away(only_file(folder))
    assert features(folder).get([digest]) == {}


def images(folder):
    return open_image_cache("disk", folder, name="x", keys=KEYS, max_bytes=10**6)


def header(slots, used, rest=b""):
    start = struct.pack("<8sQQ", b"ft-img-1", slots, used)
    return (start + struct.pack("<I", zlib.crc32(start)) + rest).ljust(4096, b"\0")


def slot(offset, height, width):
    """Describe the first image, in the one slot of a file, as whatever it is said to be."""
    content = struct.pack("<16sQIII", KEYS[0], offset, height, width, 0)
    return header(1, 2**40, content + struct.pack("<I", zlib.crc32(content)))


LIES = {
    "2^63 slots": header(2**63, 100),
    "2^40 slots": header(2**40, 2**50),
    "2^33 slots": header(2**33, 2**50),
    "no slots": header(0, 28),
    "no room for slots": header(4, 0),
    "more than any disk": header(4, 2**63),
    "an image without pixels": slot(68, 0, 0),
    "an image of 2^64 pixels": slot(68, 2**32 - 1, 2**32 - 1),
    "an image in the header": slot(0, 2, 2),
    "an image behind the end": slot(2**63, 2, 2),
}


@pytest.mark.parametrize("content", [*CONTENTS, *LIES])
def test_images_that_are_something_else_are_made_anew(place, content):
    folder = place.folder / "images"
    assert images(folder).put(0, PIXELS)
    written = LIES[content] if content in LIES else CONTENTS[content](place)
    only_file(folder).write_bytes(written)
    cache = images(folder)
    assert cache.get(0) is None
    assert cache.put(0, PIXELS)
    assert (images(folder).get(0) == PIXELS).all()
    assert not place.canary.exists()


@as_root
def test_images_of_another_user_are_refused(place):
    folder = place.folder / "images"
    images(folder).put(0, PIXELS)
    give_away(only_file(folder))
    with pytest.raises(RunError, match="is not a file of your own"):
        images(folder)


@pytest.fixture
def published():
    """Serve a file on this machine."""
    content = np.random.default_rng(0).bytes(100_000)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/x.npz"
        yield PublicFile(url, f"sha256:{sha256(content).hexdigest()}", len(content)), content
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["x.npz", "x.npz.part"])
@pytest.mark.parametrize("kind", ["link", pytest.param("file", marks=as_root)])
def test_a_download_that_another_began_begins_anew(place, published, name, kind):
    file, content = published
    folder = open_cache_folder(CacheDirectory(place.folder).downloads)
    victim = place.folder / "victim"
    victim.write_bytes(content[:1000])
    if kind == "link":
        (folder / name).symlink_to(victim)
    else:
        (folder / name).write_bytes(content[:1000])
        give_away(folder / name)
    download(file, folder / "x.npz")
    assert only_file(folder).read_bytes() == content
    assert is_own_file(folder / "x.npz")
    assert victim.read_bytes() == content[:1000]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_is_open_to_others_is_closed(tmp_path, mode):
    folder = tmp_path / "audits"
    folder.mkdir()
    folder.chmod(mode)
    assert open_cache_folder(folder) == folder
    assert not stat.S_IMODE(folder.stat().st_mode) & 0o022


def test_a_folder_that_cannot_be_closed_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "audits"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    with pytest.raises(RunError, match="others can write in the cache"):
        open_cache_folder(folder)


def test_a_link_of_ones_own_is_followed(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "audits").symlink_to(tmp_path / "large")
    assert open_cache_folder(tmp_path / "audits") == tmp_path / "audits"


@as_root
@pytest.mark.parametrize("kind", ["folder", "link", "target"])
def test_a_folder_of_another_user_is_refused(tmp_path, kind):
    folder, target = tmp_path / "audits", tmp_path / "large"
    if kind == "folder":
        folder.mkdir(mode=0o700)
    else:
        target.mkdir()
        folder.symlink_to(target)
    give_away(target if kind == "target" else folder)
    with pytest.raises(RunError, match="belongs to another user"):
        open_cache_folder(folder)


def test_the_cases_are_counted():
    count = 3 * len(CONTENTS) + len(LIES)
    print(f"{count} files in the cache that are something else")
    assert count >= 30
