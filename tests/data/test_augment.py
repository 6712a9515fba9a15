import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from finetune.data.augment import Augmentation
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import Sample
from finetune.data.labelled_images import Augmented, LabelledImages
from finetune.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
SIZE = 24
CROP = {"name": "RandomResizedCrop", "size": ["image_size_px", "image_size_px"]}
RESIZE = {"name": "Resize", "height": "image_size_px", "width": "image_size_px"}
# Each draws from a continuum, so two seeds give the same image by accident only.
TRANSFORMS = [
    {"name": "ColorJitter", "p": 1},
    {"name": "RandomBrightnessContrast", "p": 1},
    {"name": "Rotate", "limit": 90, "p": 1},
    {"name": "Affine", "translate_percent": 0.2, "rotate": [-30, 30], "p": 1},
    {"name": "ElasticTransform", "p": 1},
    {"name": "GaussNoise", "p": 1},
    {"name": "GaussianBlur", "sigma_limit": [0.5, 3], "p": 1},
    {"name": "CoarseDropout", "p": 1},
    {"name": "HueSaturationValue", "p": 1},
    {"name": "GridDistortion", "p": 1},
    {"name": "Perspective", "p": 1},
    {"name": "CLAHE", "p": 1},
    {
        "name": "OneOf",
        "p": 1,
        "transforms": [{"name": "ColorJitter", "p": 1}, {"name": "GaussNoise", "p": 1}],
    },
]


@pytest.fixture(scope="module")
def image():
    smooth = np.random.default_rng(0).random((9, 11, 3))
    return (np.kron(smooth, np.ones((6, 6, 1))) * 255).astype(np.uint8)


def augment_all(augmentation, image, seeds):
    return [augmentation(image, seed=seed).tobytes() for seed in seeds]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform["name"])
def test_depends_on_image_and_seed_alone(transform, image):
    before = image.copy()
    augmentation = Augmentation([CROP, transform], SIZE)
    forwards = augment_all(augmentation, image, range(200))
    assert len(set(forwards)) >= 198
    backwards = augment_all(Augmentation([CROP, transform], SIZE), image, reversed(range(200)))
    assert backwards[::-1] == forwards
    assert np.array_equal(image, before)


def test_transforms_are_random_independently_of_each_other(image):
    flips = [{"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5}]
    augmentation = Augmentation([RESIZE, *flips], SIZE)
    results = augment_all(augmentation, image, range(400))
    counts = sorted(results.count(result) for result in set(results))
    # Each of the four has probability 1/4: 100 +- 5 deviations.
    assert len(counts) == 4
    assert counts[0] > 56
    assert counts[3] < 144


def test_the_hosts_generators_are_neither_used_nor_moved(image):
    augmentation = Augmentation([CROP, {"name": "GaussNoise", "p": 1}], SIZE)
    results = []
    for host_seed in (1, 2):
        np.random.seed(host_seed)
        random.seed(host_seed)
        before = np.random.get_state()[1].tolist(), random.getstate()
        results.append(augmentation(image, seed=5).tobytes())
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    assert results[0] == results[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same(method, image):
    augmentation = Augmentation([CROP, TRANSFORMS[0], TRANSFORMS[-1]], SIZE)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(augment_all, augmentation, image, range(20)).result()
    assert there == augment_all(augmentation, image, range(20))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform["name"])
def test_can_be_pickled(transform, image):
    augmentation = Augmentation([CROP, transform], SIZE)
    twin = pickle.loads(pickle.dumps(augmentation))
    assert augment_all(twin, image, range(5)) == augment_all(augmentation, image, range(5))


def test_placeholder_is_the_size(image):
    transforms = [{"name": "OneOf", "transforms": [RESIZE], "p": 1}]
    for size in (8, 31):
        result = Augmentation(transforms, size)(image, seed=0)
        assert result.shape == (size, size, 3)
        assert result.dtype == np.uint8


def test_any_image_size_works():
    augmentation = Augmentation([CROP], SIZE)
    for height, width in ((1, 1), (1, 300), (300, 1)):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        assert augmentation(image, seed=0).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([], "expected a list of at least one"),
        (["HorizontalFlip"], r"transforms\[0\]: got 'HorizontalFlip', expected a mapping"),
        ([{"p": 1}], "expected a mapping with a name"),
        ([CROP, {"name": "HorizontlFlip"}], r"transforms\[1\].*Did you mean `HorizontalFlip`"),
        ([{"name": "os.system"}], "expected a transform of Albumentations"),
        ([{"name": "check_for_updates"}], "expected a transform of Albumentations"),
        ([{"name": "HorizontalFlip", "pp": 1}], "argument `pp`"),
        ([{"name": "GaussNoise", "std_rang": [0, 1]}], "Did you mean `std_range`"),
        ([{"name": "HorizontalFlip", "p": 3}], "p: got 3, Input should be less than"),
        ([{"name": "HorizontalFlip", "strict": False}], "argument `strict`"),
        ([{"name": "OneOf"}], r"\(OneOf\).transforms: got None"),
        ([{"name": "OneOf", "transforms": 3}], r"\(OneOf\).transforms: got 3"),
        ([{"name": "OneOf", "transforms": [{"name": "Flap"}]}], r"transforms\[0\]\.name: got `Fl"),
        ([{"name": "HorizontalFlip"}], r"\[8, 11, 3\] uint8, expected \[24, 24, 3\]"),
        ([RESIZE, {"name": "Normalize"}], "float32, expected.*normalises by itself"),
        ([RESIZE, {"name": "ToTensorV2"}], "the result is Tensor"),
        ([{"name": "RandomCrop", "height": 24, "width": 24}], "11 x 8 pixels: Crop size"),
        ([RESIZE, {"name": "Lambda", "image": "print"}], "transforms"),
        ([{"name": "DualTransform"}], "transforms"),
        ([{"name": "RandomResizedCrop", "size": [24, "image_size"]}], "size.1: got 'image_size'"),
    ],
)
def test_mistakes_are_named(transforms, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        Augmentation(transforms, SIZE)


def test_a_rare_wrong_size_is_found_when_it_happens(image):
    rare = {"name": "Resize", "height": 5, "width": 5, "p": 0.02}
    augmentation = Augmentation([RESIZE, rare], SIZE)
    with pytest.raises(ConfigError, match=r"\[5, 5, 3\] uint8, expected \[24, 24, 3\]"):
        augment_all(augmentation, image, range(500))


def erased(image):
    """Measure the erased rectangle of a plain image: its share, its width / height."""
    rows, columns = np.nonzero((image != 99).any(axis=2))
    if not len(rows):
        return None
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    return height * width / image[..., 0].size, width / height


def test_random_erasing_fills_a_rectangle_with_noise():
    augmentation = Augmentation([RESIZE], 64, random_erasing=0.25)
    plain = np.full((64, 64, 3), 99, dtype=np.uint8)
    images = [augmentation(plain, seed=seed) for seed in range(800)]
    found = [measured for image in images if (measured := erased(image))]
    # 200 +- 5 deviations.
    assert 139 < len(found) < 261
    shares, ratios = np.array(found).T
    assert 0.015 < shares.min() < 0.05
    assert 0.25 < shares.max() < 0.34
    assert 0.25 < ratios.min() < 0.6
    assert 2.5 < ratios.max() < 3.8
    noise = np.concatenate([image[(image != 99).any(axis=2)] for image in images])
    counts = np.bincount(noise.ravel(), minlength=256)
    assert counts.min() > 0.8 * counts.mean()


def test_random_erasing_leaves_the_other_draws_as_they_were(image):
    without = Augmentation([CROP, *TRANSFORMS[:2]], SIZE)
    always = Augmentation([CROP, *TRANSFORMS[:2]], SIZE, random_erasing=1)
    for seed in range(20):
        before, after = without(image, seed=seed), always(image, seed=seed)
        assert not np.array_equal(before, after)
        assert (before == after).all(axis=2).mean() > 0.6


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_random_erasing_is_a_probability(probability):
    with pytest.raises(ConfigError, match=r"random_erasing.*p: got"):
        Augmentation([RESIZE], SIZE, random_erasing=probability)


@pytest.fixture(scope="module")
def equal(tmp_path_factory, image):
    """Forty copies of one image, so that only the draws tell them apart."""
    root = tmp_path_factory.mktemp("equal")
    for index in range(40):
        PIL.Image.fromarray(image).save(root / f"{index:02d}.png")
    return root, [Sample(f"{index:02d}.png", ("a",), "train") for index in range(40)]


def load_epochs(equal, group, *, workers):
    """Load three epochs as a training does, and return each image's bytes in order."""
    settings = yaml.safe_load((CONF / "augmentation" / f"{group}.yaml").read_text())
    augmentation = Augmentation(
        settings["transforms"], SIZE, random_erasing=settings.get("random_erasing", 0)
    )
    root, samples = equal
    images = LabelledImages(
        root,
        samples,
        torch.zeros(len(samples), dtype=torch.int64),
        transform=Augmented(augmentation),
        seed=3,
        max_megapixels=1,
    )
    data = ImageDataModule(images, images, batch_size=8, workers=workers, seed=3)
    loader = data.train_dataloader()
    draws = []
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        draws += [image.numpy().tobytes() for batch, _ in loader for image in batch]
    return draws


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("group", ["standard", "strong"])
def test_the_draws_of_three_epochs_differ_and_do_not_depend_on_workers(equal, group):
    alone = load_epochs(equal, group, workers=0)
    print(f"{group}: {len(set(alone))} distinct of {len(alone)} draws")
    assert len(alone) == 120
    assert len(set(alone)) >= 0.99 * len(alone)
    for workers in (0, 2, 4):
        assert load_epochs(equal, group, workers=workers) == alone


def test_importing_asks_no_network():
    program = (
        "import socket, sys\n"
        "def refuse(*_): sys.exit('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import finetune.data.augment\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
