"""An exported file on raw image files: ``python -m finetune.exports.answering``, a fresh process.

What a program that deploys the file would do: decode, ask, read the numbers. Nothing of the model
that the file was made of is here.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from finetune.data.decode import decode_image
from finetune.errors import FinetuneError
from finetune.exports.interface import Answer, Pixels
from finetune.exports.runtimes import open_file

REPEATS = {1: 5, 32: 2}
"""How often a batch of each size is timed, after one that is not."""


def main(request: Path, result: Path) -> None:
    """Answer what ``request`` (JSON) asks for, and write the numbers to ``result`` (``.npz``)."""
    asked = json.loads(request.read_text())
    answer, _ = open_file(Path(asked["file"]), trust=True)
    paths = [Path(path) for path in asked["images"]]
    numbers = [answer(read_pixels(path, asked["max_megapixels"])) for path in paths]
    times = []
    if asked["is_timed"]:
        times = latencies(answer, read_pixels(paths[0], asked["max_megapixels"]))
    np.savez(result, numbers=np.concatenate(numbers), latencies=np.array(times))


def read_pixels(path: Path, max_megapixels: float) -> Pixels:
    """Decode one file to uint8 ``[1, 3, H, W]``."""
    image = decode_image(path, max_megapixels=max_megapixels)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[np.newaxis])


def latencies(answer: Answer, image: Pixels) -> list[float]:
    """Time an answer: median seconds for each batch size of ``REPEATS``, decoding left out.

    Args:
        answer: pixels to numbers.
        image: uint8 ``[1, 3, H, W]``, repeated to fill a batch.
    """
    medians = []
    for size, repeats in REPEATS.items():
        batch = np.repeat(image, size, axis=0)
        answer(batch)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            answer(batch)
            seconds.append(time.perf_counter() - started)
        medians.append(statistics.median(seconds))
    return medians


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except FinetuneError as error:
        sys.exit(str(error))
