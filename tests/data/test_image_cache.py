import hashlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import DataLoader, Dataset

from finetune.data import image_cache
from finetune.data.image_cache import Stored, open_image_cache, reduce_image
from finetune.errors import RunError

COUNT = 30
KEYS = [hashlib.sha256(str(number).encode()).digest() for number in range(COUNT)]
BIG = 10**8
TABLE = 28 + 40 * 1024  # of a small file: header and slots


def image_of(number):
    shape = (8 + number % 3, 8 + number % 5, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def open_disk(folder, *, keys=KEYS, name="photos", max_bytes=BIG):
    return open_image_cache("disk", folder, name=name, keys=keys, max_bytes=max_bytes)


def fill(cache, numbers=range(COUNT)):
    return [cache.put(number, image_of(number)) for number in numbers]


def holds(cache):
    """List what the cache has; everything that it has must be right."""
    got = {number: cache.get(number) for number in range(len(cache.keys) // 16)}
    for number, image in got.items():
        assert image is None or np.array_equal(image, image_of(number))
    return [number for number, image in got.items() if image is not None]


def only_file(folder):
    (path,) = folder.iterdir()
    return path


class Images(Dataset):
    """Decode what the cache does not have, as a training does."""

    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        image = self.cache.get(index)
        if image is not None:
            return int(image[0, 0, 0]), False
        self.cache.put(index, image_of(index))
        return int(image_of(index)[0, 0, 0]), True


@pytest.mark.parametrize(
    ("kind", "workers", "method"),
    [
        ("ram", 0, None),
        ("ram", 2, "fork"),
        ("ram", 2, "spawn"),
        ("disk", 0, None),
        ("disk", 2, "fork"),
    ],
)
def test_each_image_is_decoded_once_by_whichever_worker(tmp_path, kind, workers, method):
    cache = open_image_cache(kind, tmp_path, name="photos", keys=KEYS, max_bytes=BIG)
    assert cache.describe() == Stored(0, 0, BIG)
    loader = DataLoader(
        Images(cache),
        batch_size=4,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=workers > 0,
    )
    decoded = []
    for _ in range(2):
        values, was_decoded = zip(*loader, strict=True)
        assert [int(v) for batch in values for v in batch] == [
            int(image_of(number)[0, 0, 0]) for number in range(COUNT)
        ]
        decoded.append(sum(int(batch.sum()) for batch in was_decoded))
    print(f"{kind}, {workers} workers: {decoded[0]} decoded in the first epoch, then {decoded[1]}")
    assert decoded == [COUNT, 0]
    assert cache.describe().images == COUNT
    assert cache.describe().bytes == sum(image_of(number).nbytes for number in range(COUNT))


def test_the_next_run_finds_what_the_last_one_stored(tmp_path):
    assert all(fill(open_disk(tmp_path), range(20)))
    cache = open_disk(tmp_path)
    assert holds(cache) == list(range(20))
    assert cache.describe().images == 20
    assert only_file(tmp_path).suffix == image_cache.SUFFIX
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o600


def fill_from_its_own_start(folder, numbers):
    cache = open_disk(folder)
    return all(cache.put(number, image_of(number)) for number in numbers)


def test_two_runs_that_begin_at_once_share_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        shares = [range(0, COUNT, 2), range(1, COUNT, 2), range(0, COUNT, 3)] * 4
        assert all(pool.map(fill_from_its_own_start, [tmp_path] * len(shares), shares))
    assert holds(open_disk(tmp_path)) == list(range(COUNT))
    only_file(tmp_path)


def test_a_changed_image_is_not_found_and_the_others_are(tmp_path):
    fill(open_disk(tmp_path))
    keys = [*KEYS[:7], b"changed content " * 2, *KEYS[8:]]
    assert holds(open_disk(tmp_path, keys=keys)) == [n for n in range(COUNT) if n != 7]


def test_images_are_found_in_another_order_and_among_others(tmp_path):
    fill(open_disk(tmp_path))
    cache = open_disk(tmp_path, keys=[b"a new image " * 2, *reversed(KEYS)])
    assert cache.get(0) is None
    assert np.array_equal(cache.get(1), image_of(COUNT - 1))


def test_equal_files_are_stored_once(tmp_path):
    cache = open_disk(tmp_path, keys=[KEYS[0]] * 5)
    assert cache.put(3, image_of(0))
    assert np.array_equal(cache.get(1), image_of(0))
    assert cache.describe() == Stored(1, image_of(0).nbytes, BIG)


def test_another_policy_is_another_file(tmp_path, monkeypatch):
    fill(open_disk(tmp_path))
    assert holds(open_disk(tmp_path, name="photos\0side 448")) == []
    monkeypatch.setattr(image_cache, "_PIXELS_VERSION", -1)
    assert holds(open_disk(tmp_path)) == []
    monkeypatch.undo()
    monkeypatch.setattr(PIL, "__version__", "0")
    assert holds(open_disk(tmp_path)) == []
    assert len(list(tmp_path.iterdir())) == 4


def test_a_full_cache_keeps_what_it_has(tmp_path):
    max_bytes = TABLE + sum(image_of(number).nbytes for number in range(10))
    cache = open_disk(tmp_path, max_bytes=max_bytes)
    assert fill(cache) == [True] * 10 + [False] * 20
    assert holds(cache) == list(range(10))
    assert only_file(tmp_path).stat().st_size == max_bytes
    assert open_disk(tmp_path, max_bytes=0).describe().images == 10


def test_it_takes_no_more_than_half_of_what_is_free(tmp_path):
    disk = os.statvfs(tmp_path)
    limit = open_disk(tmp_path, max_bytes=10**15).describe().max_bytes
    assert limit <= disk.f_bavail * disk.f_frsize * 0.6
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    in_ram = open_image_cache("ram", None, name="", keys=KEYS, max_bytes=10**15)
    assert in_ram.describe().max_bytes == memory // 2


def test_a_file_of_images_that_are_gone_is_made_anew(tmp_path):
    image = np.zeros((100, 100, 3), np.uint8)
    size = TABLE + COUNT * image.nbytes
    old = open_disk(tmp_path, max_bytes=size)
    assert all(old.put(number, image) for number in range(COUNT))
    assert open_disk(tmp_path, keys=KEYS[:20], max_bytes=size).describe().images == 20
    assert open_disk(tmp_path, keys=KEYS[:5], max_bytes=10 * size).describe().images == 5
    new = open_disk(tmp_path, keys=KEYS[:5], max_bytes=size)
    assert new.describe().images == 0
    assert old.describe().images == COUNT  # a run that is still at work
    assert np.array_equal(old.get(20), image)
    fill(new, range(5))
    assert holds(open_disk(tmp_path, keys=KEYS[:5])) == list(range(5))


def test_a_file_outgrown_by_its_images_is_made_anew(tmp_path):
    fill(open_disk(tmp_path))
    many = [*KEYS, *(hashlib.sha256(b"%d" % n).digest() for n in range(100, 900))]
    cache = open_disk(tmp_path, keys=many)
    assert cache.describe().images == 0
    assert cache.store.num_slots == 3 * len(many)


@pytest.mark.parametrize("content", [b"", b"ft-img-1", b"no cache at all" * 10**4])
def test_a_damaged_file_is_made_anew(tmp_path, content):
    fill(open_disk(tmp_path))
    only_file(tmp_path).write_bytes(content)
    cache = open_disk(tmp_path)
    assert holds(cache) == []
    assert all(fill(cache))
    assert holds(open_disk(tmp_path)) == list(range(COUNT))


def test_a_file_cut_short_is_made_anew(tmp_path):
    fill(open_disk(tmp_path))
    os.truncate(only_file(tmp_path), 50_000)
    assert all(fill(open_disk(tmp_path)))


def test_a_link_in_its_place_is_not_followed(tmp_path):
    open_disk(tmp_path / "cache")
    place = only_file(tmp_path / "cache")
    place.unlink()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place.symlink_to(victim)
    with pytest.raises(RunError, match="cannot be used: Too many levels of symbolic links"):
        open_disk(tmp_path / "cache")
    assert victim.read_text() == "precious"


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    fill(open_disk(tmp_path))
    path = only_file(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(image_cache, "open_cache_folder", lambda folder: folder)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(RunError, match="not a file of your own"):
        open_disk(tmp_path)
    assert path.read_bytes() == before


def test_something_else_in_its_place_is_refused(tmp_path):
    open_disk(tmp_path)
    path = only_file(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RunError, match="not a file of your own"):
        open_disk(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match="Is a directory"):
        open_disk(tmp_path)


def test_short_keys_and_wrong_indices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="less than 16 bytes"):
        open_disk(tmp_path, keys=[b"short"])
    for keys in ([], KEYS):
        for index in (-1, len(keys)):
            with pytest.raises(IndexError):
                open_disk(tmp_path, keys=keys).get(index)


def test_memory_without_memfd(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    cache = open_image_cache("ram", None, name="", keys=KEYS, max_bytes=BIG)
    assert all(fill(cache))
    assert holds(cache) == list(range(COUNT))


def test_closing_gives_memory_and_descriptors_back():
    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(3):
        cache = open_image_cache("ram", None, name="", keys=KEYS, max_bytes=BIG)
        fill(cache)
        holds(cache)
        del cache
    assert count() == before


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 60), st.integers(1, 60), st.just(3))),
    st.integers(1, 70),
)
def test_a_reduced_image_has_the_side_that_was_asked_for(image, side_px):
    height, width = image.shape[:2]
    reduced = reduce_image(image, side_px)
    if min(height, width) <= side_px:
        assert reduced is image
        return
    assert min(reduced.shape[:2]) == side_px
    assert reduced.flags.writeable
    assert reduced.shape[2] == 3
    longer = max(height, width) * side_px / min(height, width)
    assert longer - 1 < max(reduced.shape[:2]) <= longer
    assert (reduced.shape[0] > reduced.shape[1]) <= (height > width)


def test_reducing_does_not_alias():
    # A fine pattern becomes its mean; every fourth pixel alone would be white or black.
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, ::2] = 200
    reduced = reduce_image(image, 16)
    assert reduced.shape == (16, 24, 3)
    assert abs(reduced[:, 1:-1].astype(int) - 100).max() <= 3
