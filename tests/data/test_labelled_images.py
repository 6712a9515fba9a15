"""Images with their targets: what is decoded, what is kept, and how it is transformed."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from finetune.data.augment import Augmentation
from finetune.data.batches import sample_seed
from finetune.data.discover import Sample
from finetune.data.labelled_images import (
    Augmented,
    LabelledImages,
    Resized,
    Rounded,
    Unchanged,
    make_targets,
)
from finetune.data.preprocess import Preprocess
from finetune.data.stamps import Stamp, Stamps, hash_file
from finetune.errors import DataError

SIZE_PX = 16
COUNT = 5
NAMES = ("even", "odd")
AUGMENTATION = Augmentation(
    [
        {"name": "RandomResizedCrop", "size": ["image_size_px", "image_size_px"]},
        {"name": "ColorJitter", "p": 1.0},
    ],
    SIZE_PX,
)
PREPROCESS = Preprocess(SIZE_PX, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)


class Kept(dict):
    """A cache of one process, without a limit."""

    def put(self, slot, image):
        self[slot] = image
        return True


def image_of(index):
    smooth = np.random.default_rng(index).random((6, 8, 3))
    return (np.kron(smooth, np.ones((5, 5, 1))) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images labelled by the parity of their index."""
    root = tmp_path_factory.mktemp("images")
    samples = []
    for index in range(COUNT):
        path = f"{index}.png"
        PIL.Image.fromarray(image_of(index)).save(root / path)
        samples.append(Sample(path, (NAMES[index % 2],), "train"))
    return root, tuple(samples)


def with_seed(image, seed):
    """Keep the image and say by which seed it was asked for."""
    return image.copy(), seed


def images_of(source, transform=with_seed, **arguments):
    root, samples = source
    targets = make_targets(samples, NAMES, is_multilabel=False)
    arguments = {"seed": 3, "max_megapixels": 1, **arguments}
    return LabelledImages(root, samples, targets, transform=transform, **arguments)


def test_an_image_comes_with_its_label_and_the_seed_of_its_draw(source):
    images = images_of(source)
    assert len(images) == COUNT
    for epoch, draw in ((0, 0), (0, 3), (7, 3), (7, 3 + COUNT)):
        (pixels, seed), label = images[epoch, draw]
        assert np.array_equal(pixels, image_of(draw % COUNT))
        assert seed == sample_seed(3, epoch, draw)
        assert label == draw % COUNT % 2


def test_an_image_is_prepared_before_it_is_kept_and_transformed_after(source):
    cache = Kept()
    images = images_of(source, prepare=lambda image: image // 2, cache=cache)
    (first, seed), _ = images[0, 4]
    assert np.array_equal(first, image_of(4) // 2)
    assert np.array_equal(cache[4], first)
    cache[4] = cache[4] + 1
    (again, other_seed), _ = images[1, 4]
    assert np.array_equal(again, first + 1)
    assert seed != other_seed


def test_slots_say_where_the_cache_keeps_an_image(source):
    cache = Kept()
    images = images_of(source, cache=cache, slots=[9, 8, 7, 6, 5])
    images[0, 1]
    images[0, 4]
    images[0, 4 + COUNT]
    assert {slot: image.tolist() for slot, image in cache.items()} == {
        8: image_of(1).tolist(),
        5: image_of(4).tolist(),
    }


def test_a_large_jpeg_is_decoded_as_small_as_is_allowed(tmp_path):
    PIL.Image.new("RGB", (400, 320)).save(tmp_path / "large.jpg")
    source = tmp_path, (Sample("large.jpg", ("even",), None),)
    assert images_of(source).decode(0).shape == (320, 400, 3)
    assert images_of(source, min_side_px=80).decode(0).shape == (80, 100, 3)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "even").mkdir()
    (tmp_path / "even" / "text.png").write_text("no image")
    PIL.Image.new("RGB", (1001, 1000)).save(tmp_path / "even" / "huge.png")
    paths = ("even/text.png", "even/gone.png", "even/huge.png")
    cache = Kept()
    images = images_of((tmp_path, [Sample(path, ("even",), None) for path in paths]), cache=cache)
    for index, path in enumerate(paths):
        with pytest.raises(DataError, match="cannot be read") as caught:
            images[0, index]
        assert str(caught.value).startswith(str(tmp_path / path))
    assert not cache


@pytest.fixture
def stamped(source, tmp_path):
    """A copy of the images, and what they are like now."""
    root = shutil.copytree(source[0], tmp_path / "images")
    stamps = Stamps([stamp_of(root / sample.path) for sample in source[1]])
    return (root, source[1]), stamps


def stamp_of(path):
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, hash_file(path).hex())


def put_time(path, mtime_ns):
    os.utime(path, ns=(mtime_ns, mtime_ns))


def test_an_image_is_read_while_it_is_what_it_was(stamped):
    source, stamps = stamped
    images = images_of(source, stamps=stamps)
    for index in range(COUNT):
        assert np.array_equal(images[0, index][0][0], image_of(index))


@pytest.mark.parametrize("kind", ["other pixels", "other size", "other pixels, same size", "cut"])
def test_an_image_that_has_changed_is_refused(stamped, kind):
    source, stamps = stamped
    path = source[0] / "2.png"
    old, content = path.stat(), path.read_bytes()
    if kind == "other pixels":
        PIL.Image.fromarray(image_of(9)).save(path)
    elif kind == "other size":
        path.write_bytes(content + b"more")
        put_time(path, old.st_mtime_ns)
    elif kind == "cut":
        path.write_bytes(content[:50])
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        put_time(path, old.st_mtime_ns + 1000)
    images = images_of(source, stamps=stamps)
    images[0, 1]
    for _ in range(2):
        with pytest.raises(DataError, match=r"2\.png has changed since the run began; put the old"):
            images[0, 2]
    path.write_bytes(content)  # the old file is back
    assert np.array_equal(images[0, 2][0][0], image_of(2))


def test_a_file_that_was_only_touched_is_hashed_once(stamped, monkeypatch):
    source, stamps = stamped
    hashed = []
    monkeypatch.setattr(
        "finetune.data.stamps.hash_file", lambda path: hashed.append(path.name) or hash_file(path)
    )
    images = images_of(source, stamps=stamps)
    put_time(source[0] / "3.png", 1)
    for epoch in range(3):
        for index in range(COUNT):
            assert np.array_equal(images[epoch, index][0][0], image_of(index))
    assert hashed == ["3.png"]


def test_what_a_cache_holds_is_what_the_run_began_with(stamped):
    source, stamps = stamped
    images = images_of(source, stamps=stamps, cache=Kept())
    images[0, 0]
    for index in (0, 1):
        PIL.Image.fromarray(image_of(9)).save(source[0] / f"{index}.png")
    assert np.array_equal(images[1, 0][0][0], image_of(0))
    with pytest.raises(DataError, match="has changed"):
        images[1, 1]
    assert list(images.cache) == [0]


def test_an_image_that_is_gone_is_named_before_it_is_compared(stamped):
    source, stamps = stamped
    (source[0] / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png cannot be read any more: No such file"):
        images_of(source, stamps=stamps)[0, 2]


def test_targets_follow_the_names():
    samples = [
        Sample("a", ("cat", "dog"), None),
        Sample("b", (), None),
        Sample("c", ("dog",), None),
    ]
    several = make_targets(samples, ("cat", "dog"), is_multilabel=True)
    assert several.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert several.dtype == torch.float32
    one = make_targets(samples[2:], ("cat", "dog"), is_multilabel=False)
    assert one.tolist() == [1]
    assert one.dtype == torch.int64


def test_an_image_shown_twice_in_an_epoch_is_augmented_twice(source):
    images = images_of(source, Augmented(AUGMENTATION))
    first, label = images[0, 2]
    again, same_label = images[0, 2 + COUNT]
    assert first.shape == (3, SIZE_PX, SIZE_PX)
    assert first.dtype == torch.uint8
    assert label == same_label
    assert not torch.equal(first, again)
    assert torch.equal(first, images[0, 2][0])


def test_validation_shows_what_prediction_shows(source):
    images = images_of(source, Resized(PREPROCESS))
    first, _ = images[0, 0]
    other_epoch, _ = images[7, 0]
    assert first.shape == (3, SIZE_PX, SIZE_PX)
    assert first.dtype == torch.float32
    assert torch.equal(first, other_epoch)
    pixels = torch.from_numpy(image_of(0)).permute(2, 0, 1)
    assert torch.equal(first, PREPROCESS.resize(pixels)[0])


def test_a_kept_validation_image_is_the_same_in_whole_numbers():
    image = image_of(1)
    rounded = Rounded(PREPROCESS)(image)
    assert rounded.shape == (SIZE_PX, SIZE_PX, 3)
    assert rounded.dtype == np.uint8
    assert rounded.flags.c_contiguous
    shown = Unchanged()(rounded, 5)
    assert shown.dtype == torch.float32
    assert torch.equal(shown, Resized(PREPROCESS)(image, 5).round())
