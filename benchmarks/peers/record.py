"""What each peer's script takes and says: the same words, and one line of JSON at the end."""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

BATCH_SIZE = 32


def parse(description: str | None, *, batch_size: int = BATCH_SIZE) -> argparse.Namespace:
    """Read the command line of a peer's script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="with train/<class> and val/<class>")
    parser.add_argument("--weights", type=Path, required=True, help="of convert_weights.py")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Record:
    """Collect what each validation says; seconds count from the start of the process.

    Args:
        keeps: whether the peer keeps its best epoch, or the last.
    """

    def __init__(self, *, keeps: Literal["best", "last"]) -> None:
        self.keeps = keeps
        # The one that started this process knows best when that was.
        self.started = float(os.environ.get("BENCHMARK_STARTED", time.time()))
        self.rows: list[dict[str, float]] = []

    def add(self, true: Sequence[int], predicted: Sequence[int]) -> None:
        """Count one validation by the classes of its images."""
        balanced = balanced_accuracy(true, predicted)
        self.add_scores(sum(map(int.__eq__, true, predicted)) / len(true), balanced)

    def add_scores(self, accuracy: float, balanced: float) -> None:
        """Take the scores that the peer computed itself, in 0..1."""
        seconds = time.time() - self.started
        self.rows.append({"accuracy": accuracy, "balanced_accuracy": balanced, "seconds": seconds})

    def print(self) -> None:
        """Print the line: scores of the epoch that is kept, and all epochs."""
        kept = self.rows[-1]
        if self.keeps == "best":
            kept = max(self.rows, key=lambda row: row["accuracy"])
        scores = {name: kept[name] for name in ("accuracy", "balanced_accuracy")}
        print(json.dumps({**scores, "rows": self.rows}), flush=True)


def balanced_accuracy(true: Sequence[int], predicted: Sequence[int]) -> float:
    """Give the mean over the classes of the share of their images that are found."""
    found = Counter(one for one, other in zip(true, predicted, strict=True) if one == other)
    counts = Counter(true)
    return sum(found[name] / count for name, count in counts.items()) / len(counts)
