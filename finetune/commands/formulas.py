"""``dataset=formulas``: images that formulas draw, written once."""

from pathlib import Path

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.config import DatasetConfig, Task
from finetune.data.formulas.compositions import Compositions
from finetune.data.formulas.folder import LABELS, write_formulas
from finetune.data.formulas.scenes import Scenes
from finetune.errors import ConfigError
from finetune.training.hardware import count_cores


def draw_formulas(config: DatasetConfig, task: Task) -> Path:
    """Draw the images into ``dataset.root``, unless they are there, with progress.

    Returns:
        The table of their labels.

    Raises:
        ConfigError: no root, or scenes of several labels for a task of one.
        DataError: the root holds something else, or cannot be written.
    """
    if config.root is None or config.formulas is None:
        raise ConfigError("dataset.root: missing; give a folder to draw into: dataset.root=PATH.")
    if config.formulas == "scenes" and task != "multilabel":
        raise ConfigError(
            f"task: got {task}, but scenes show several things each; use task=multilabel, or "
            "dataset.formulas=compositions, fractals, contours or textures."
        )
    side_px, num_classes = int(config.formula_side_px or 0), int(config.formula_classes or 0)
    drawings: Compositions | Scenes
    if config.formulas == "compositions":
        drawings = Compositions(side_px, num_classes=num_classes)
    else:
        drawings = Scenes(
            config.formulas,
            side_px,
            num_fractals=num_classes,
            num_contours=num_classes,
            num_textures=num_classes,
        )
    images = int(config.formula_images or 0)
    columns = (TextColumn("Drawing images"), BarColumn(), MofNCompleteColumn())
    console = rich.get_console()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=images)
        write_formulas(
            config.root,
            drawings,
            images=images,
            workers=count_cores() if config.workers == "auto" else max(1, config.workers),
            on_progress=lambda done: progress.update(bar, completed=done),
        )
    return config.root / LABELS
