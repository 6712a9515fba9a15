"""The images of a kind as a folder with a table, drawn once: any later epoch only decodes them."""

import csv
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from PIL import Image

from finetune.data.formulas.compositions import Compositions
from finetune.data.formulas.scenes import Scenes
from finetune.data.public.placement import place_folder

Drawings = Compositions | Scenes
LABELS = "labels.csv"
"""Path, label (several joined by ``|``) and split of each image."""
SEPARATOR = "|"
VAL_EVERY = 50
"""Each image of that number is for validation."""

_DRAWN_AS = "formulas.json"
_IMAGES_PER_FOLDER = 1000
_QUALITY = 95


def write_formulas(
    root: Path,
    drawings: Drawings,
    *,
    images: int,
    workers: int,
    on_progress: Callable[[int], None],
) -> None:
    """Draw images into ``root``, with a table of their labels, unless the same are there.

    Args:
        root: a new or an empty folder.
        drawings: what to draw.
        images: how many.
        workers: drawing processes; >= 1.
        on_progress: called with the number of images that are drawn.

    Raises:
        DataError: ``root`` holds something else, or other formulas, or cannot be written.
    """
    known = asdict(drawings) | {"images": images}
    place_folder(
        root,
        partial(_write, drawings=drawings, known=known, workers=workers, on_progress=on_progress),
        is_complete=partial(_holds, known=known),
        name=_name(drawings, images),
    )


def _name(drawings: Drawings, images: int) -> str:
    return f"{images:,} {drawings.kind} of {drawings.side_px} px, seed {drawings.seed},"


def _write(
    root: Path,
    *,
    drawings: Drawings,
    known: dict[str, object],
    workers: int,
    on_progress: Callable[[int], None],
) -> None:
    count = int(str(known["images"]))
    starts = range(0, count, _IMAGES_PER_FOLDER)
    root.mkdir()
    write = partial(_write_some, root=root, drawings=drawings, end=count)
    with (root / LABELS).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "split"])
        # A fork would copy whatever locks the threads of this process hold.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for done, rows in enumerate(pool.map(write, starts), start=1):
                table.writerows(rows)
                on_progress(min(done * _IMAGES_PER_FOLDER, count))
    (root / _DRAWN_AS).write_text(json.dumps(known) + "\n", encoding="utf-8")


def _write_some(
    start: int, *, root: Path, drawings: Drawings, end: int
) -> list[tuple[str, str, str]]:
    """Draw the images of one folder; return their rows."""
    folder = f"{start // _IMAGES_PER_FOLDER:04}"
    (root / folder).mkdir()
    rows = []
    for index in range(start, min(start + _IMAGES_PER_FOLDER, end)):
        image, labels = drawings.draw(index)
        path = f"{folder}/{index:07}.jpg"
        Image.fromarray(image).save(root / path, quality=_QUALITY, subsampling=0)
        rows.append((path, SEPARATOR.join(labels), "val" if index % VAL_EVERY == 0 else "train"))
    return rows


def _holds(root: Path, *, known: dict[str, object]) -> bool:
    try:
        there: object = json.loads((root / _DRAWN_AS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return there == known
