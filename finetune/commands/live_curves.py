"""``curves.png``, drawn while the training runs."""

import time

from finetune.evaluation.plots import plot_learning_curves
from finetune.run import RunDirectory
from finetune.training.callbacks import EpochTable

SHARE = 0.05
"""Of the time that drawing may take."""


class LiveCurves:
    """Draws the curves after an epoch, if that takes little of the training's time.

    Args:
        run: where they go.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._began = time.monotonic()
        self._seconds = 0.0

    def __call__(self, epochs: EpochTable) -> None:
        """Draw all rows so far, unless the drawings would take more than ``SHARE`` of the time."""
        now = time.monotonic()
        if self._seconds > SHARE * (now - self._began):
            return
        draw_curves(self.run, epochs)
        self._seconds += time.monotonic() - now


def draw_curves(run: RunDirectory, epochs: EpochTable) -> None:
    """Draw ``curves.png`` of the rows that ``metrics.csv`` holds."""
    plot_learning_curves(
        epochs.rows, run.curves, monitor=epochs.monitor, best_epoch=epochs.best_epoch
    )
