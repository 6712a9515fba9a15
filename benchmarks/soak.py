"""Five hundred epochs of the embedded default, with checkpoints: memory and open files stay flat.

    .venv/bin/python benchmarks/soak.py [epochs]

Prints every 25th epoch, and at the end by how much both have grown since the first tenth, when
everything has been used once. A training that kept something of each epoch would grow with them.
"""

import gc
import os
import sys
import tempfile
import time
from pathlib import Path

from finetune.cli import main
from finetune.training.callbacks import EpochTable

EPOCHS = 500


def resident_mebibytes() -> float:
    """Give the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    """Count the file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def measure(words: list[str], epochs: int) -> list[tuple[int, float, int]]:
    """Train, and note memory and files after each epoch.

    Args:
        words: of the command line, after ``train``.
        epochs: of the training.

    Returns:
        Epoch, MiB, descriptors.
    """
    rows: list[tuple[int, float, int]] = []
    end = EpochTable.on_train_epoch_end

    def noting(self: EpochTable, *arguments: object) -> None:
        end(self, *arguments)  # type: ignore[arg-type]
        gc.collect()
        rows.append((len(rows) + 1, resident_mebibytes(), open_files()))

    EpochTable.on_train_epoch_end = noting  # type: ignore[method-assign]
    try:
        status = main(["train", *words, f"trainer.epochs={epochs}"])
    finally:
        EpochTable.on_train_epoch_end = end  # type: ignore[method-assign]
    if status:
        sys.exit(status)
    return rows


def growth(rows: list[tuple[int, float, int]]) -> tuple[float, int]:
    """Compare the median of the last tenth with that of the second tenth: MiB, descriptors."""
    tenth = max(1, len(rows) // 10)
    first, last = rows[tenth : 2 * tenth], rows[-tenth:]

    def middle(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    memory = middle([row[1] for row in last]) - middle([row[1] for row in first])
    return memory, int(middle([row[2] for row in last]) - middle([row[2] for row in first]))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EPOCHS
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            [f"runs={folder}", "evidence=none", "trainer.early_stopping_patience=null"], count
        )
    for epoch, memory, files in found[24::25]:
        sys.stdout.write(f"epoch {epoch:4}: {memory:7.1f} MiB, {files} open files\n")
    more_memory, more_files = growth(found)
    sys.stdout.write(
        f"{count} epochs in {time.monotonic() - began:.0f} s: {more_memory:+.1f} MiB and "
        f"{more_files:+d} open files between the second tenth and the last.\n"
    )
