"""How fast images are decoded, augmented and loaded on this machine, beside what it can do at most.

    .venv/bin/python benchmarks/loading.py

Small images (500 px) and photographs of 12 megapixels are made in a temporary folder. All variants
of a table run in turn, again and again, so that a busy machine slows all alike; the fastest round
of each counts. What the machine does at most stands first; ratios are to the first row.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import PIL.Image
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from finetune.data.augment import Augmentation
from finetune.data.decode import decode_image
from finetune.data.discover import Sample
from finetune.data.image_cache import ImageCache, open_image_cache, reduce_image
from finetune.data.labelled_images import Augmented, LabelledImages

ROUNDS = 3
SIZE_PX = 224
SIDE_PX = 2 * SIZE_PX  # as a training does
WORKERS = len(os.sched_getaffinity(0))
CONF = Path(__file__).parents[1] / "conf" / "augmentation"
KINDS = {"500 px": ((500, 375), 60, 1200), "12 megapixels": ((4000, 3000), 6, 48)}
"""For each kind of image: width and height, files, images of an epoch."""

Work = Callable[[], int]
"""Does something to some images and says to how many."""


def make_images(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Write JPEGs with structure on all scales, as photographs have."""
    folder.mkdir()
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.zeros((size[1], size[0], 3), np.float32)
        for octave in range(2, 10):
            noise = rng.normal(0, 60 * 0.6**octave, (2**octave, 2**octave, 3)) + 16
            image += np.stack([_stretch(noise[..., c], size) for c in range(3)], axis=2)
        paths.append(folder / f"{number:03d}.jpg")
        PIL.Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def _stretch(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = PIL.Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC))


def rates(variants: dict[str, Callable[[], Iterator[tuple[str, Work]]]]) -> dict[str, float]:
    """Run all variants in turn and return the best images per second of each of their steps."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for steps in variants.values():
            for name, work in steps():
                start = time.perf_counter()
                count = work()
                rate = count / (time.perf_counter() - start)
                best[name] = max(best.get(name, 0.0), rate)
    return best


def one_core(works: dict[str, tuple[Callable[[Any], Any], list[Any]]]) -> dict[str, float]:
    """Give the rate of functions that are called for each of some inputs."""

    def steps(name: str) -> Iterator[tuple[str, Work]]:
        function, inputs = works[name]
        yield name, lambda: len([function(item) for item in inputs])

    return rates({name: partial(steps, name) for name in works})


def print_table(title: str, measured: dict[str, float]) -> None:
    """Print rates as Markdown, each with its ratio to the first."""
    first = next(iter(measured.values()))
    print(f"\n| {title} | images/s | ratio |\n| --- | ---: | ---: |")
    for name, rate in measured.items():
        print(f"| {name} | {rate:,.{0 if rate > 20 else 1}f} | {rate / first:.2f} |")


def pillow_decode(path: Path, *, draft_px: int | None = None) -> np.ndarray:
    """Decode with Pillow and nothing else."""
    with PIL.Image.open(path) as image:
        if draft_px is not None:
            image.draft("RGB", (draft_px, draft_px))
        return np.asarray(image)


def augmentation_of(group: str) -> Augmentation:
    """Make one of the groups of ``conf/augmentation``."""
    settings = yaml.safe_load((CONF / f"{group}.yaml").read_text())
    return Augmentation(
        settings["transforms"], SIZE_PX, random_erasing=settings.get("random_erasing", 0.0)
    )


def measure_decode(paths: dict[str, list[Path]]) -> None:
    """Print how fast files become pixels."""
    draft = partial(pillow_decode, draft_px=SIDE_PX)
    reduced = partial(decode_image, min_side_px=SIDE_PX)
    for kind, files in paths.items():
        works: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
            "Pillow alone": (pillow_decode, files),
            "Pillow alone, draft": (draft, files),
            "decode_image": (decode_image, files),
            f"decode_image, min_side_px={SIDE_PX}": (reduced, files),
        }
        print_table(f"decode {kind}, one core", one_core(works))


def measure_augment(image: np.ndarray) -> None:
    """Print how fast decoded images are reduced, augmented, and read from a cache."""
    seeds = list(range(40))
    works: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "memory copy alone": (lambda _: image.copy(), seeds)
    }
    for group in ("none", "light", "standard", "strong", "medical", "trivial"):
        augmentation = augmentation_of(group)
        works[f"augmentation={group}"] = (partial(_augment, augmentation, image), seeds)
    with tempfile.TemporaryDirectory() as folder:
        keys = keys_of(len(seeds))
        for kind in ("ram", "disk"):
            cache = open_cache(kind, Path(folder), keys)
            for seed in seeds:
                cache.put(seed, image)
            works[f"read from cache={kind}"] = (cache.get, seeds)
        height, width = image.shape[:2]
        print_table(f"decoded image of {width} x {height} pixels, one core", one_core(works))


def _augment(augmentation: Augmentation, image: np.ndarray, seed: int) -> np.ndarray:
    return augmentation(image, seed=seed)


def keys_of(count: int) -> list[bytes]:
    """Make a key for each image, as if all files were different."""
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


def open_cache(kind: Any, folder: Path, keys: list[bytes]) -> ImageCache:
    """Open a cache as large as it needs to be."""
    return open_image_cache(kind, folder, name=str(time.time_ns()), keys=keys, max_bytes=4 * 10**9)


class Alone(Dataset[torch.Tensor]):
    """What a loader can do at most: one thing for each image, and nothing else."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        result = self.function(key[1])
        return result if isinstance(result, torch.Tensor) else torch.zeros(1)


def loader_steps(images: Dataset[Any], count: int, names: list[str]) -> Iterator[tuple[str, Work]]:
    """Load one epoch after the other with workers that have been started before."""
    batches = [[(0, 0)] for _ in range(2 * WORKERS)]
    loader = DataLoader(images, batch_sampler=batches, num_workers=WORKERS, persistent_workers=True)
    for _ in loader:
        pass
    for epoch, name in enumerate(names):
        batches[:] = [
            [(epoch, index) for index in range(start, min(start + 32, count))]
            for start in range(0, count, 32)
        ]
        yield name, lambda: sum(1 for _ in loader) and count


def measure_load(kind: str, files: list[Path], count: int) -> None:
    """Print how fast batches come out of a loader, with and without a cache."""
    samples = [Sample(files[i % len(files)].name, ("a",), "train") for i in range(count)]
    square = torch.zeros((3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    folder = Path(tempfile.mkdtemp())

    def images(cache: ImageCache | None) -> LabelledImages:
        return LabelledImages(
            files[0].parent,
            samples,
            torch.zeros(count, dtype=torch.int64),
            prepare=None if cache is None else partial(reduce_image, side_px=SIDE_PX),
            transform=Augmented(augmentation_of("standard")),
            cache=cache,
            min_side_px=SIDE_PX,
            seed=0,
            max_megapixels=200,
        )

    def cached(where: Literal["ram", "disk"]) -> Iterator[tuple[str, Work]]:
        cache = open_cache(where, folder, keys_of(count))
        names = [f"cache={where}, first epoch", f"cache={where}, next epochs"]
        yield from loader_steps(images(cache), count, names)
        assert cache.describe().images == count

    def alone(name: str, function: Callable[[Path], Any]) -> Iterator[tuple[str, Work]]:
        yield from loader_steps(Alone(lambda i: function(files[i % len(files)])), count, [name])

    draft = partial(pillow_decode, draft_px=SIDE_PX)
    measured = rates(
        {
            "decode": lambda: alone("Pillow decode alone", pillow_decode),
            "draft": lambda: alone("Pillow decode alone, draft", draft),
            "copy": lambda: alone("memory copy alone", lambda _: square.clone()),
            "none": lambda: loader_steps(images(None), count, ["cache=none"]),
            "ram": lambda: cached("ram"),
            "disk": lambda: cached("disk"),
        }
    )
    shutil.rmtree(folder)
    print_table(f"load {kind}, {WORKERS} workers, augmentation=standard", measured)


def main() -> None:
    """Print all tables."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    print(f"{WORKERS} cores, Pillow {PIL.__version__}, images of {SIZE_PX} px for the network")
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            kind: make_images(Path(folder, kind), size, files)
            for kind, (size, files, _) in KINDS.items()
        }
        measure_decode(paths)
        measure_augment(reduce_image(decode_image(paths["12 megapixels"][0]), SIDE_PX))
        for kind, (_, _, count) in KINDS.items():
            measure_load(kind, paths[kind], count)
    print(f"\n{time.perf_counter() - start:.0f} s for all")


if __name__ == "__main__":
    main()
