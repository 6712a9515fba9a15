import errno
import hashlib
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.data import image_store
from finetune.data.image_store import ImageStore, initialise, is_valid

HEADER = 28
TABLE = HEADER + 40 * 1024
images = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))
keys = st.binary(min_size=16, max_size=16)


def key_of(number):
    return hashlib.sha256(str(number).encode()).digest()[:16]


def image_of(number, *, side=12):
    """Make an image whose pixels tell its number, of a size of its own."""
    shape = (side + number % 3, side + number % 5, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def make(tmp_path):
    """Return a function that opens a store on the same file again and again."""

    def open_store(*, num_slots=1024, max_bytes=10**8):
        fd = os.open(tmp_path / "store", os.O_RDWR | os.O_CREAT)
        if os.fstat(fd).st_size == 0:
            initialise(fd, num_slots)
        return ImageStore(fd, max_bytes)

    open_store.path = tmp_path / "store"
    return open_store


@given(st.dictionaries(keys, images, max_size=20))
def test_what_is_put_is_got_by_this_store_and_the_next(contents):
    fd = os.memfd_create("test")
    initialise(fd, 64)
    store, other = ImageStore(fd, 10**8), ImageStore(os.dup(fd), 10**8)
    assert all(store.get(key) is None for key in contents)
    for key, image in contents.items():
        assert store.put(key, image)
    for reader in (store, other, ImageStore(os.dup(fd), 10**8)):
        for key, image in contents.items():
            for _ in range(2):
                got = reader.get(key)
                assert np.array_equal(got, image)
                assert got.dtype == np.uint8
                assert got.flags.writeable
                assert got.flags.c_contiguous
                got[:] = 0  # a copy: what is stored does not change
        total = sum(image.nbytes for image in contents.values())
        assert reader.sizes(b"".join(contents)).sum() == reader.bytes_used() == total


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(2, 6))
def test_keys_that_meet_in_one_place_are_kept_apart(numbers, num_slots):
    # All keys begin alike, so that all want the same slot; not all of them find another.
    fd = os.memfd_create("test")
    initialise(fd, num_slots)
    store = ImageStore(fd, 10**8)
    stored = {}
    for number in numbers:
        key = bytes(8) + number.to_bytes(8, "little")
        if store.put(key, image_of(number)):
            stored[key] = image_of(number)
    assert stored
    assert all(np.array_equal(store.get(key), image) for key, image in stored.items())
    assert len(stored) == min(len(set(numbers)), num_slots)


def test_an_image_that_is_not_contiguous_is_stored(make):
    image = image_of(1)[::-1, ::2]
    store = make()
    assert store.put(key_of(1), image)
    assert np.array_equal(store.get(key_of(1)), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(make, image):
    with pytest.raises(ValueError, match=r"expected uint8 \[h, w, 3\]"):
        make().put(key_of(1), image)


def fill(store, numbers):
    for number in numbers:
        if store.get(key_of(number)) is None:
            assert store.put(key_of(number), image_of(number))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_fill_one_file(make, method):
    # Half of each process's images are those of its neighbour too.
    store = make()
    context = multiprocessing.get_context(method)
    shares = [range(first, first + 60) for first in (0, 30, 60)]
    processes = [context.Process(target=fill, args=(store, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for reader in (store, make()):
        assert all(np.array_equal(reader.get(key_of(n)), image_of(n)) for n in range(120))
    assert len(store.sizes(b"".join(map(key_of, range(120))))) == 120


def plain(number):
    return np.full((300, 300, 3), number % 251, np.uint8)


def fill_for_ever(store, first):
    number = first
    while True:
        store.put(key_of(number), plain(number))
        number += 1


def test_a_killed_writer_leaves_whole_images_and_a_free_lock(make):
    context = multiprocessing.get_context("fork")
    first, stored = 0, 0
    for attempt in range(12):
        store = make()
        process = context.Process(target=fill_for_ever, args=(store, first))
        process.start()
        while store.get(key_of(first)) is None:
            time.sleep(0.001)
        time.sleep(0.005 * np.random.default_rng(attempt).random())
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        store = make()
        assert is_valid(store._fd)
        number = first
        while (image := store.get(key_of(number))) is not None:
            assert np.array_equal(image, plain(number))
            number += 1
        assert store.put(key_of(number), plain(number))
        stored += number - first
        first = number + 1
    print(f"12 writers killed after {stored} images; 0 damaged")
    assert all(store.get(key_of(n)) is not None for n in range(first))


def test_a_flipped_bit_is_noticed_wherever_it_is(make):
    store = make(num_slots=1024)
    for number in range(3):
        store.put(key_of(number), image_of(number))
    content = make.path.read_bytes()
    rng = np.random.default_rng(0)
    pixels = np.arange(TABLE, len(content))
    slots = np.flatnonzero(np.frombuffer(content[:TABLE], np.uint8)[HEADER:]) + HEADER
    missing = 0
    for place in rng.permutation(np.concatenate([rng.choice(pixels, 100), slots])):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        make.path.write_bytes(damaged)
        reader = make()
        got = [reader.get(key_of(number)) for number in range(3)]
        missing += sum(image is None for image in got)
        for number, image in enumerate(got):
            assert image is None or np.array_equal(image, image_of(number))
            assert reader.put(key_of(number), image_of(number))
            assert np.array_equal(reader.get(key_of(number)), image_of(number))
    assert missing == 100 + len(slots)
    print(f"{missing} flipped bits: {missing} images not given out, 0 wrong ones")


def test_a_file_cut_short_gives_what_is_left(make):
    store = make()
    for number in range(3):
        store.put(key_of(number), image_of(number))
    size = make.path.stat().st_size
    fd = os.open(make.path, os.O_RDWR)
    os.ftruncate(fd, size - 1)
    os.close(fd)
    reader = make()
    assert np.array_equal(reader.get(key_of(1)), image_of(1))
    assert reader.get(key_of(2)) is None


def test_a_header_that_is_damaged_or_older_than_the_slots_is_not_valid(make):
    store = make()
    headers = []
    for number in range(3):
        store.put(key_of(number), image_of(number))
        headers.append(make.path.read_bytes()[:HEADER])
    content = make.path.read_bytes()

    def valid_with(header):
        make.path.write_bytes(header + content[HEADER:])
        with make.path.open("rb") as file:
            return is_valid(file.fileno())

    assert [valid_with(header) for header in headers] == [False, False, True]
    for bit in range(8 * HEADER):
        damaged = bytearray(headers[2])
        damaged[bit // 8] ^= 1 << bit % 8
        assert not valid_with(damaged)


@pytest.mark.parametrize("content", [b"", b"ft-img-1", b"text" * 100, bytes(10**5)])
def test_another_file_is_not_valid(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with (tmp_path / "other").open("rb") as file:
        assert not is_valid(file.fileno())


def test_it_grows_to_max_bytes_and_not_beyond(make):
    store = make(max_bytes=TABLE + 2 * 300)
    image = np.zeros((10, 10, 3), np.uint8)
    assert [store.put(key_of(number), image) for number in range(4)] == [True, True, False, False]
    assert make.path.stat().st_size == TABLE + 600
    assert store.get(key_of(1)) is not None
    assert store.get(key_of(2)) is None
    assert make(max_bytes=10**6).put(key_of(2), image)


def test_a_full_disk_ends_the_filling_and_gets_its_bytes_back(make, monkeypatch):
    store = make()
    assert store.put(key_of(0), image_of(0))
    before = make.path.read_bytes()
    whole, full_at = os.pwrite, len(before) + 100

    def pwrite(fd, content, offset):
        if offset >= full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(fd, content[: full_at - offset], offset)

    monkeypatch.setattr(image_store.os, "pwrite", pwrite)
    assert not store.put(key_of(1), image_of(1))
    monkeypatch.undo()
    assert make.path.read_bytes() == before
    assert not store.put(key_of(1), image_of(1))
    assert store.get(key_of(1)) is None
    assert np.array_equal(store.get(key_of(0)), image_of(0))
    assert make().put(key_of(1), image_of(1))


def test_it_cannot_be_pickled_by_itself(make):
    with pytest.raises(TypeError, match="open them again"):
        pickle.dumps(make())
