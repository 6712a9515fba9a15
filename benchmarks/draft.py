"""What decoding large JPEGs at a reduced size costs in accuracy, and gains in speed.

    .venv/bin/python benchmarks/draft.py RUN FOLDER …

Each JPEG of the folders that can be reduced is decoded in full and at a shorter side of at least
1, 2, 3 and 4 times the size that the model of RUN resizes to; then both are resized and classified.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.data.decode import decode_image, read_header
from finetune.data.discover import discover_inputs
from finetune.exports.bundle import Model, load_model

FACTORS = (1, 2, 3, 4)


def main(run: str, *folders: str) -> None:
    """Print a row per factor."""
    model = load_model(run)
    needed = model.preprocess.resize_px
    paths = [path for folder in folders for path in discover_inputs(folder)]
    files = [path.read_bytes() for path in paths if is_reducible(path, 2 * needed)]
    print(f"{len(files)} JPEGs with a shorter side of {2 * needed} px or more\n")
    print(
        "| shorter side at least | JPEGs reduced | largest difference of a pixel | mean | "
        "largest change of a probability | times as fast |\n| --- | --- | --- | --- | --- | --- |"
    )
    for factor in FACTORS:
        rows = [compare(model, data, factor * needed) for data in files]
        reduced = np.array([row for row in rows if row is not None])
        if len(reduced):
            largest, mean, change, speed = reduced.T
            print(
                f"| {factor} x {needed} px | {len(reduced)} | {largest.max():.1f} | "
                f"{mean.mean():.2f} | {change.max():.4f} | {np.median(speed):.1f} |"
            )


def is_reducible(path: Path, side_px: int) -> bool:
    """Tell whether a file is a JPEG with a shorter side of at least that."""
    header = read_header(path)
    return header.format == "JPEG" and min(header.width_px, header.height_px) >= side_px


def compare(model: Model, data: bytes, side_px: int) -> tuple[float, float, float, float] | None:
    """Return differences of pixels (0..255) and probability, and the ratio of times."""
    start = time.perf_counter()
    full = decode_image(data)
    middle = time.perf_counter()
    reduced = decode_image(data, min_side_px=side_px)
    end = time.perf_counter()
    if reduced.shape == full.shape:
        return None
    one, other = resize(model, full), resize(model, reduced)
    pixels = (one - other).abs()
    change = (model.probabilities(one) - model.probabilities(other)).abs().max()
    ratio = (middle - start) / (end - middle)
    return float(pixels.max()), float(pixels.mean()), float(change), ratio


def resize(model: Model, image: np.ndarray) -> Tensor:
    """Bring a decoded image to the size of the network."""
    return model.preprocess.resize(torch.from_numpy(image).permute(2, 0, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
