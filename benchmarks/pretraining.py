"""What the embedded weights of `nano` are worth: probe and fine-tuning, beside random weights.

    .venv/bin/python benchmarks/pretraining.py ../shared/data [--weights FILE] [--seeds 0 1 2]
        [--only digits_10 …] [--tune digits_10 …] [--write]

The random network of a probe has its BatchNorm statistics from the images that it is probed on, to
be fair; the embedded one is taken as it is. Fine-tuning trains either for as many epochs. Runs are
made in a temporary folder.
"""

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import mean_and_deviation, show, table
from safetensors.torch import save_file
from torch import Tensor, nn

import finetune
from finetune.data.public.digits import write_digits
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.training.averaging import reestimate_batchnorm

SIDE_PX = {"digits": 32, "photographs": 96}
CHEST_PER_CLASS = 500
FEW_DIGITS_EPOCHS = 30
"""Of 100 or 500 digits four epochs, the data set's own, are a few steps."""
NAMES = ("digits_10", "digits_50", "digits_all", "hymenoptera", "brain_mri", "chest_xray")
COLUMNS = [f"{way}, {start}" for way in ("probe", "fine-tuned") for start in ("random", "embedded")]
Figures = dict[str, float]


def main() -> None:
    """Train, and print the table."""
    arguments = parse()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or NAMES:
            found = [measure(name, seed, Path(folder), arguments) for seed in arguments.seeds]
            rows += [[f"{name}, {split}", *cells(found, split)] for split in found[0]]
    show(
        "What the embedded weights are worth",
        f"Balanced accuracy in percent, seeds {arguments.seeds}, mean ± standard deviation; digits "
        f"at {SIDE_PX['digits']} px, the others at {SIDE_PX['photographs']} px; {CHEST_PER_CLASS} "
        "chest X-rays of each class to train and validate on, and all of the other source to "
        "test.\n\n" + table(["images", *COLUMNS], rows),
        writes=arguments.write,
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of hymenoptera, brain_mri, chest_xray")
    parser.add_argument("--weights", type=Path, help="instead of the embedded ones")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NAMES)
    parser.add_argument("--tune", nargs="*", choices=NAMES, default=NAMES, help="these alone")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    return parser.parse_args()


def measure(
    name: str, seed: int, folder: Path, arguments: argparse.Namespace
) -> dict[str, Figures]:
    """Train on one set with one seed; return balanced accuracies by split and by column."""
    place = folder / f"{name}-{seed}"
    words = [
        *images_of(name, seed, place, arguments.data.resolve()),
        f"seed={seed}",
        f"runs={place / 'runs'}",
        f"cache_folder={folder / 'cache'}",
        "model=nano",
        "evidence=none",
        "dataset.monitor=balanced_accuracy",
    ]
    start = ["model.pretrained=true"]
    if arguments.weights:
        start = ["model.pretrained=false", f"model.weights={arguments.weights}"]
    random = place / "random.safetensors"
    found: dict[str, Figures] = {}
    probe = ["freeze=backbone", "evidence.gain=false"]
    probed = train(words, *start, *probe, "name=probe")
    write_random(random, place / "runs", seed)
    without = train(
        words, "model.pretrained=false", f"model.weights={random}", *probe, "name=random"
    )
    for split in ("val", "test"):
        if split in probed:
            found[split] = {
                "probe, embedded": probed[split]["balanced_accuracy"],
                "probe, random": without[split]["balanced_accuracy"],
            }
    if name in arguments.tune:
        tuned = train(words, *start, "evidence.gain=true", "name=tuned")
        key = "val_balanced_accuracy"
        found["val"]["fine-tuned, embedded"] = tuned["candidates"]["fine-tuned"][key]
        found["val"]["fine-tuned, random"] = tuned["gain"]["random"]
    print(name, seed, found, file=sys.stderr, flush=True)
    return found


def train(words: list[str], *more: str) -> dict[str, Any]:
    """Train, and return ``metrics.json``."""
    result = finetune.train(*words, *more)
    figures: dict[str, Any] = json.loads((result.run / "metrics.json").read_text())
    return figures


def images_of(name: str, seed: int, place: Path, data: Path) -> list[str]:
    """Give the words for a set of images; its tables are written into ``place``."""
    place.mkdir()
    if name.startswith("digits"):
        root = place.parent / "digits"
        write_digits(root)
        words = [
            "dataset=digits",
            f"model.image_size_px={SIDE_PX['digits']}",
            f"dataset.root={root}",
        ]
        count = name.removeprefix("digits_")
        if count != "all":
            rows = few_per_class(root, "*.png", int(count), seed, rest="val")
            words = [*words, "dataset.source=folder", manifest(place, rows)]
            words.append(f"trainer.epochs={FEW_DIGITS_EPOCHS}")
        return words
    words = [f"model.image_size_px={SIDE_PX['photographs']}", f"dataset.root={data / name}"]
    if name == "chest_xray":
        rows = few_per_class(data / name / "train", "*.jpeg", CHEST_PER_CLASS, seed, rest=None)
        rows += few_per_class(data / name / "test", "*.jpeg", 10**6, seed, rest=None, split="test")
        words = [*words, manifest(place, rows), r"dataset.group_pattern=(person\d+_[a-z]+)_"]
    return ["dataset=folder", *words, "dataset.accept=[duplicates,near_duplicates]"]


def few_per_class(
    root: Path, pattern: str, count: int, seed: int, *, rest: str | None, split: str = "train"
) -> list[tuple[str, str, str]]:
    """Draw ``count`` images of each class; the others are of the split ``rest``, or left out."""
    rng = np.random.default_rng(seed)
    rows = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        paths = [str(path) for path in rng.permutation(sorted(folder.glob(pattern)))]
        rows += [(path, folder.name, split) for path in paths[:count]]
        rows += [(path, folder.name, rest) for path in paths[count:] if rest]
    return rows


def manifest(place: Path, rows: list[tuple[str, str, str]]) -> str:
    """Write a table of images; return the word for it."""
    path = place / "images.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return f"dataset.manifest={path}"


def write_random(path: Path, runs: Path, seed: int) -> None:
    """Write random weights with the BatchNorm statistics of a run's training images."""
    torch.manual_seed(seed)
    backbone = create_backbone("nano")
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    reestimate_batchnorm(backbone, norms, training_batches(next(runs.glob("*/probe"))))
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, path)


def training_batches(run: Path, batch_size: int = 50) -> Iterator[Tensor]:
    """Give a run's training images, at the size that it took, normalised."""
    root = Path(json.loads((run / "run.json").read_text())["data"])
    side_px = json.loads((run / "model.json").read_text())["preprocessing"]["image_size_px"]
    info = describe_backbone(create_backbone("nano"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    with (run / "split.csv").open() as file:
        paths = [root / row["path"] for row in csv.DictReader(file) if row["split"] == "train"]
    for start in range(0, len(paths) - 1, batch_size):
        images = []
        for path in paths[start : start + batch_size]:
            image = Image.open(path).convert("RGB")
            scale = side_px / min(image.size)
            size = [max(side_px, round(side * scale)) for side in image.size]
            image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
            left, top = (size[0] - side_px) // 2, (size[1] - side_px) // 2
            square = image.crop((left, top, left + side_px, top + side_px))
            images.append((torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255 - mean) / std)
        if len(images) > 1:
            yield torch.stack(images)


def cells(found: list[dict[str, Figures]], split: str) -> list[str]:
    """Write the figures of one row."""
    return [
        mean_and_deviation((figures.get(split, {}).get(name) for figures in found), 1, scale=100)
        for name in COLUMNS
    ]


if __name__ == "__main__":
    main()
