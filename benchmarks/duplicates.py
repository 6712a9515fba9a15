"""How well near-duplicates are found in real images, and how fast among 100,000.

    .venv/bin/python benchmarks/duplicates.py FOLDER …

Each folder is listed as for training. Of up to 500 of its images, a copy is made that is encoded
again (JPEG or WebP of quality 30 to 95, PNG) or resized (0.4 to 2 times) as well. The closest pair
is that of the images themselves, without equal files: whether it shows one thing or two, only
looking tells.

The search runs on fingerprints that are as close to each other as those of chest X-rays, which are
far more alike than photographs, and on the worst there is: many copies, films, and both at once.
"""

import io
import resource
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.auditing.duplicates import MAX_DISTANCE, find_near_duplicates
from finetune.data.auditing.fingerprint import SIZE, fingerprint
from finetune.data.decode import decode_image
from finetune.data.discover import discover_folder

COPIES = 500
SEARCHED = 100_000
Points = npt.NDArray[np.float32]


def encode_again(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> bytes:
    """Return the file of a copy."""
    source = Image.fromarray(image)
    if rng.random() < 0.5:
        scale = float(np.exp(rng.uniform(np.log(0.4), np.log(2))))
        size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
        source = source.resize(size, list(Image.Resampling)[rng.integers(6)])
    file = io.BytesIO()
    kind = ("JPEG", "WEBP", "PNG")[rng.integers(3)]
    options = {"compress_level": 1} if kind == "PNG" else {"quality": int(rng.integers(30, 96))}
    source.save(file, kind, **options)
    return file.getvalue()


def measure_folder(root: Path) -> str:
    """Return one row of the table."""
    rng = np.random.default_rng(0)
    samples = discover_folder(root).samples
    copied = set(rng.permutation(len(samples))[:COPIES].tolist())
    looks, distances = {}, []
    for index, sample in enumerate(samples):
        content = (root / sample.path).read_bytes()
        image = decode_image(content)
        look = fingerprint(image)
        if look is None:
            continue
        looks[content] = look.astype(np.float32)
        if index in copied:
            copy = fingerprint(decode_image(encode_again(image, rng)))
            near = copy is not None
            distances.append(float(np.linalg.norm(looks[content] - copy)) if near else np.inf)
    points = np.stack(list(looks.values()))
    sets = find_near_duplicates(points)
    found = np.mean(np.array(distances) <= MAX_DISTANCE)
    p50, p99, worst = np.percentile(distances, [50, 99, 100])
    return (
        f"| {root.name} | {len(points)} | {100 * found:.1f} % of {len(distances)} | {p50:.3f} "
        f"| {p99:.3f} | {worst:.3f} | {closest_apart(points):.3f} "
        f"| {sum(len(part) - 1 for part in sets)} |"
    )


def closest_apart(points: Points) -> float:
    """Give the smallest distance of a pair that is not taken for copies."""
    points = points.astype(np.float64)
    squares = (points**2).sum(axis=1)
    smallest = np.inf
    for index in range(len(points) - 1):
        rest = slice(index + 1, None)
        squared = squares[index] + squares[rest] - 2 * points[rest] @ points[index]
        squared = squared[squared > MAX_DISTANCE**2]
        smallest = min(smallest, float(squared.min(initial=np.inf)))
    return float(np.sqrt(smallest))


def alike(rng: np.random.Generator) -> Points:
    """Draw fingerprints with the spectrum that chest X-rays have."""
    spread = 0.2 / (1 + np.arange(SIZE) / 6)
    return (rng.normal(size=(SEARCHED, SIZE)) * spread).astype(np.float32)


def noise(rng: np.random.Generator, count: int, distance: float) -> Points:
    """Draw vectors of a length."""
    return (rng.normal(size=(count, SIZE)) * distance / SIZE**0.5).astype(np.float32)


def measure_search(name: str, points: Points) -> str:
    """Return one row of the table."""
    points = points.astype(np.float16)
    start = time.perf_counter()
    sets = find_near_duplicates(points)
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    largest = max(map(len, sets), default=0)
    return f"| {name} | {taken:.1f} | {len(sets)} | {largest} | {peak:.0f} |"


def main(*folders: str) -> None:
    """Print both tables."""
    if folders:
        print(
            "| images | distinct files | copies found | median distance | 99 % | largest ", end=""
        )
        print("| closest pair left apart | near-copies among them |")
        print("| --- " * 8 + "|")
    for folder in folders:
        print(measure_folder(Path(folder)), flush=True)
    print(f"\nWithin {MAX_DISTANCE:g} counts as a copy. The search, {SEARCHED:,} fingerprints:\n")
    print("| fingerprints | seconds | sets | largest set | peak of the process, MiB |")
    print("| --- " * 5 + "|")
    rng = np.random.default_rng(0)
    base = alike(rng)
    print(measure_search("all distinct", base), flush=True)
    for name, part in (
        ("10,000 of them equal", noise(rng, 10_000, 0)),
        ("10,000 of them near-copies", noise(rng, 10_000, 0.05)),
        ("10,000 of them frames of a film", np.cumsum(noise(rng, 10_000, 0.05), axis=0)),
    ):
        mixed = base.copy()
        mixed[rng.permutation(SEARCHED)[: len(part)]] = part + base[0]
        print(measure_search(name, mixed), flush=True)
    film = np.cumsum(noise(rng, SEARCHED, 0.05), axis=0)
    print(measure_search("all near-copies", noise(rng, SEARCHED, 0.05)), flush=True)
    print(measure_search("all frames of a film", film), flush=True)
    print(measure_search("frames of a film, shuffled", rng.permutation(film)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
