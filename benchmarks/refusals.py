"""How long a mistake takes to be refused, on 10,000 images; whole processes, nothing kept before.

    .venv/bin/python benchmarks/refusals.py

Makes the images (64 px JPEGs in two classes) in a temporary folder, and types mistakes. The first
row is what every process but that of a typo needs before it can look. The last two are no mistake
of settings: the images must all be opened for it, for the first time and again.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

IMAGES = 10_000
SIDE_PX = 64
MISTAKES = {
    "a typo in a key": ["optimizer.lrr=1"],
    "an unknown backbone": ["model.backbone=resnet81"],
    "weights that are not there": ["model.weights=not/there.safetensors"],
    "a name that is taken": ["name=taken"],
    "a batch larger than the images": ["trainer.batch_size=20000"],
    "more frozen stages than there are": ["freeze.stages=9"],
    "an unknown optimizer": ["optimizer.name=adamm"],
    "a split file that is not there": ["dataset.split_file=not/there.csv"],
    "a pattern that matches nothing": ["dataset.group_pattern=x(y)z"],
    "one image in two classes, found by opening all": ["name=new"],
    "the same, again": ["name=new"],
}


def make_images(root: Path) -> None:
    """Write noise on grey, half of the images in each class, and one of both."""
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        folder = root / ("even" if index % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (8, 8, 3), np.uint8)
        image = PIL.Image.fromarray(small).resize((SIDE_PX, SIDE_PX))
        image.save(folder / f"{index:05}.jpg")
    (root / "even" / "copy.jpg").write_bytes((root / "odd" / "00001.jpg").read_bytes())


def refuse(root: Path, place: Path, words: list[str]) -> tuple[float, str]:
    """Type a mistake; return the seconds until the process ended, and what it said."""
    command = [sys.executable, "-m", "finetune", "train", f"dataset.root={root}", "model=nano"]
    command += ["trainer=cpu", f"runs={place / 'runs'}", f"cache_folder={place / 'cache'}", *words]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode != 2:
        raise SystemExit(f"{words}: status {done.returncode}: {done.stdout}{done.stderr}")
    return seconds, done.stderr.strip().split("\n")[-1]


def main() -> None:
    """Print one row for each mistake."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_images(place / "images")
        (place / "runs" / "images" / "taken").mkdir(parents=True)
        began = time.monotonic()
        loads = [sys.executable, "-c", "import finetune.commands.train"]
        subprocess.run(loads, check=True)
        sys.stdout.write(
            f"| only loading torch, timm and Lightning | {time.monotonic() - began:.1f} | |\n"
        )
        for name, words in MISTAKES.items():
            seconds, said = refuse(place / "images", place, words)
            sys.stdout.write(f"| {name} | {seconds:.1f} | {said[:110]} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
