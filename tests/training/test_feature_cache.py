import hashlib
import multiprocessing
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from finetune.models.backbones import create_backbone
from finetune.training import feature_cache
from finetune.training.feature_cache import cached_features, features_key, open_feature_cache

KEY = "ab" * 32


def digest(number):
    return hashlib.sha256(bytes([number % 256])).hexdigest()


def rows_of(numbers, width=3):
    return torch.stack([torch.arange(width) + 10.0 * number for number in numbers])


def key(backbone, **changes):
    settings = {"name": "nano", "preprocessing": {"image_size_px": 32}, "precision": "32-true"}
    return features_key(backbone, **{**settings, **changes})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def filled(folder):
    open_feature_cache(folder, key=KEY).add([digest(1), digest(2)], rows_of([1, 2]))
    return folder


def only_file(folder):
    (file,) = folder.iterdir()
    return file


def test_what_was_stored_is_found_by_the_next_run(filled):
    found = open_feature_cache(filled, key=KEY).get([digest(2), digest(9), digest(1)])
    assert set(found) == {digest(1), digest(2)}
    assert torch.equal(found[digest(2)], rows_of([2])[0])
    assert open_feature_cache(filled, key="cd" * 32).get([digest(1)]) == {}
    assert filled.stat().st_mode & 0o777 == 0o700


def test_several_runs_add_up(filled):
    open_feature_cache(filled, key=KEY).add([digest(3)], rows_of([3]))
    assert len(list(filled.iterdir())) == 2
    assert len(open_feature_cache(filled, key=KEY).get([digest(n) for n in range(5)])) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-5],
        lambda content: b"",
        lambda content: b"\xff" * 100,
    ],
)
def test_a_damaged_file_is_removed_and_its_images_are_new(filled, damage):
    file = only_file(filled)
    file.write_bytes(damage(file.read_bytes()))
    cache = open_feature_cache(filled, key=KEY)
    assert cache.get([digest(1), digest(2)]) == {}
    assert not file.exists()
    cache.add([digest(1), digest(2)], rows_of([1, 2]))
    assert len(cache.get([digest(1), digest(2)])) == 2


@pytest.mark.parametrize("place", range(0, 24, 5))
def test_a_flipped_bit_of_a_feature_is_noticed(filled, place):
    file = only_file(filled)
    content = bytearray(file.read_bytes())
    start = content.index(rows_of([1, 2]).numpy().tobytes())
    content[start + place] ^= 4
    file.write_bytes(content)
    assert open_feature_cache(filled, key=KEY).get([digest(1), digest(2)]) == {}


def test_a_flipped_bit_of_a_digest_makes_its_image_new(filled):
    file = only_file(filled)
    content = bytearray(file.read_bytes())
    content[content.index(bytes.fromhex(digest(2)))] ^= 1
    file.write_bytes(content)
    found = open_feature_cache(filled, key=KEY).get([digest(1), digest(2)])
    assert list(found) == [digest(1)]
    assert torch.equal(found[digest(1)], rows_of([1])[0])


def make_tensors(**changes):
    keys = torch.tensor([list(bytes.fromhex(digest(1)))], dtype=torch.uint8)
    rows = changes.get("features", rows_of([1]))
    sums = feature_cache._checksums(keys, rows) if rows.ndim == 2 else torch.zeros(1).long()
    return {"digests": keys, "features": rows, "checksums": sums, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"features": torch.tensor([[1.0, float("nan"), 2.0]])},
        {"features": rows_of([1]).double()},
        {"features": torch.zeros(3)},
        {"digests": torch.zeros(2, 32, dtype=torch.uint8)},
        {"digests": torch.zeros(1, 32)},
        {"more": torch.zeros(1)},
    ],
)
def test_what_it_would_not_write_it_does_not_trust(filled, changes):
    file = only_file(filled)
    save_file(make_tensors(), file)
    assert len(open_feature_cache(filled, key=KEY).get([digest(1)])) == 1
    save_file(make_tensors(**changes), file)
    assert open_feature_cache(filled, key=KEY).get([digest(1)]) == {}
    assert not file.exists()


def test_a_link_and_another_users_file_are_not_trusted(filled, tmp_path, monkeypatch):
    file = only_file(filled)
    elsewhere = file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(elsewhere)
    cache = open_feature_cache(filled, key=KEY)
    assert cache.get([digest(1)]) == {}
    assert elsewhere.exists()
    cache.add([digest(1)], rows_of([1]))
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert cache.get([digest(1)]) == {}


def test_a_folder_that_cannot_be_had_is_noted(tmp_path):
    (tmp_path / "file").touch()
    cache = open_feature_cache(tmp_path / "file", key=KEY)
    assert cache.get([digest(1)]) == {}
    cache.add([digest(1)], rows_of([1]))
    assert [note.startswith("Nothing is kept for the next time: ") for note in cache.notes] == [
        True
    ]


def test_a_disk_that_does_not_take_it_is_noted(filled, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "save_file", fail)
    cache = open_feature_cache(filled, key=KEY)
    cache.add([digest(3)], rows_of([3]))
    assert "No space left on device" in cache.notes[0]
    assert len(list(filled.iterdir())) == 1


def _store(folder, numbers):
    cache = open_feature_cache(folder, key=KEY)
    for number in numbers:
        cache.add([digest(number)], rows_of([number]))
        cache.get([digest(number)])


def test_processes_that_store_at_once_lose_nothing(folder):
    context = multiprocessing.get_context("fork")
    shares = [range(20), range(10, 30)]
    processes = [context.Process(target=_store, args=(folder, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found = open_feature_cache(folder, key=KEY).get([digest(n) for n in range(30)])
    assert len(found) == 30
    assert all(torch.equal(found[digest(n)], rows_of([n])[0]) for n in range(30))


class Computer:
    def __init__(self, numbers):
        self.numbers = numbers
        self.places = []

    def __call__(self, places):
        self.places.extend(places)
        return rows_of([self.numbers[place] for place in places])


@given(
    before=st.lists(st.integers(0, 9), max_size=6),
    now=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    unreadable=st.sets(st.integers(0, 11)),
    chunk=st.integers(1, 4),
)
def test_only_what_is_new_is_computed_and_once(tmp_path_factory, before, now, unreadable, chunk):
    folder = tmp_path_factory.mktemp("features")
    cache = open_feature_cache(folder, key=KEY)
    if before:
        cached_features(cache, [digest(n) for n in before], compute=Computer(before))
    digests = [None if place in unreadable else digest(n) for place, n in enumerate(now)]
    computer, progress = Computer(now), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "CHUNK_IMAGES", chunk)
        features = cached_features(cache, digests, compute=computer, on_progress=progress.append)
    assert torch.equal(features.rows, rows_of(now))
    assert features.from_cache == sum(
        d is not None and n in before for d, n in zip(digests, now, strict=True)
    )
    named = {n for d, n in zip(digests, now, strict=True) if d is not None}
    assert len(computer.places) == len(named - set(before)) + digests.count(None)
    assert progress == sorted(progress)
    assert progress[-1] == len(now)
    again = Computer(now)
    cached_features(cache, digests, compute=again)
    assert len(again.places) == digests.count(None)


def test_without_a_folder_everything_is_computed_each_time():
    cache = open_feature_cache(None, key=KEY)
    for _ in range(2):
        features = cached_features(cache, [digest(1)], compute=Computer([1]))
        assert features.from_cache == 0


def test_an_interrupted_run_keeps_what_it_stored(folder, monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK_IMAGES", 2)
    numbers = list(range(5))
    computer = Computer(numbers)

    def stop(places):
        if 4 in places:
            raise KeyboardInterrupt
        return computer(places)

    cache = open_feature_cache(folder, key=KEY)
    with pytest.raises(KeyboardInterrupt):
        cached_features(cache, [digest(n) for n in numbers], compute=stop)
    assert len(cache.get([digest(n) for n in numbers])) == 4


def test_the_key_is_of_everything_that_decides_a_feature():
    torch.manual_seed(0)
    backbone = create_backbone("nano")
    first = key(backbone)
    assert first == key(backbone.to(memory_format=torch.channels_last).train())
    changed = [
        key(backbone, name="other"),
        key(backbone, precision="bf16-mixed"),
        key(backbone, preprocessing={"image_size_px": 64}),
        key(create_backbone("nano")),
        key(nn.Sequential(backbone)),
    ]
    next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)).running_mean[0] += 1
    changed.append(key(backbone))
    backbone.to(torch.bfloat16)
    changed.append(key(backbone))
    assert len({first, *changed}) == 8
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in changed)
