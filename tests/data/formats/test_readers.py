"""Readers raise and remark; the user's warnings and logs are as before."""

import io
import logging
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import PngImagePlugin

from finetune.data.decode import decode_image
from finetune.data.formats.readers import readers_are_quiet


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def invalid_apng():
    """Write a PNG of one grey pixel and an animation of no frames, of which Pillow warns."""
    chunks = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        chunk(b"acTL", struct.pack(">II", 0, 0)),
        chunk(b"IDAT", zlib.compress(b"\0\0")),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def remark(module):
    """Warn as code of a module would."""
    warnings.warn_explicit("odd metadata", UserWarning, f"{module}.py", 1, module=module)


@pytest.mark.parametrize("module", ["PIL.PngImagePlugin", "pydicom.filereader"])
def test_readers_are_quiet_only_within(module):
    with readers_are_quiet():
        remark(module)
    with pytest.warns(UserWarning, match="odd metadata"):
        remark(module)


@pytest.mark.parametrize("module", ["numpy", "PILlow", "finetune.data.decode"])
def test_others_are_heard(module):
    with pytest.raises(UserWarning, match="odd metadata"), readers_are_quiet():
        remark(module)


def test_pydicoms_log_is_not_passed_on(caplog):
    log = logging.getLogger("pydicom")
    with readers_are_quiet():
        log.warning("odd tag")
    assert not caplog.records
    log.warning("odd tag")
    assert [record.getMessage() for record in caplog.records] == ["odd tag"]


def test_an_error_within_restores_as_well():
    def fail():
        with readers_are_quiet():
            within.append((warnings.filters != before, log.propagate))
            raise OSError("damaged")

    before, log, within = list(warnings.filters), logging.getLogger("pydicom"), []
    with pytest.raises(OSError, match="damaged"):
        fail()
    assert within == [(True, False)]
    assert warnings.filters == before
    assert log.propagate


def test_the_last_one_out_restores():
    """Two threads, of which the first one in is the first one out."""
    before = list(warnings.filters)
    both_in, first_is_out = threading.Barrier(2, timeout=30), threading.Event()

    def first():
        with readers_are_quiet():
            both_in.wait()
        first_is_out.set()

    def second():
        with readers_are_quiet():
            both_in.wait()
            assert first_is_out.wait(30)
            remark("PIL.Image")
            return list(warnings.filters)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(first)
        within = pool.submit(second).result()
    assert within != before
    assert warnings.filters == before


def test_warning_filters_are_as_before_after_many_threads():
    before, data = list(warnings.filters), invalid_apng()
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(decode_image, [data] * 200))
    assert len(images) == 200
    assert warnings.filters == before
    # Pillow does warn of this file, so the above shows something.
    with pytest.warns(UserWarning, match="Invalid APNG"):
        PngImagePlugin.PngImageFile(io.BytesIO(data))
