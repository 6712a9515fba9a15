"""How good ours is without any tuning, beside its own probe and its peers, on several folders.

    .venv/bin/python benchmarks/zero_tuning.py --weights resnet18.safetensors FOLDER …

Uses what `peers.py` measured, and measures what is missing.
"""

import statistics
from argparse import Namespace
from pathlib import Path

from measuring import Records, chosen, each, measure, parse
from report import mean_and_deviation, show, table
from tools import OURS, Record

HEADINGS = ("tool", "accuracy, %", "balanced accuracy, %", "time, s")
SCORES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
BELOW_BEST, ABOVE_MEAN = 0.5, 1.0
"""Points that ours may be below the best of the others, and shall be above their mean."""
NOTE = """Ours with its defaults (`finetune`), its probe alone, and the peers as in "Peers" \
({epochs} epochs). A folder without a val split is divided anew for each of {seeds} seed(s), the \
same for all tools; ± is the standard deviation."""


def main() -> None:
    """Measure, and print a table and a verdict for each folder."""
    arguments = parse(__doc__)
    records = measure(arguments)
    note = NOTE.format(epochs=arguments.epochs, seeds=len(arguments.seeds))
    parts = [part_of(records, folder, arguments) for folder in arguments.folders]
    show("Zero tuning", "\n\n".join([note, *parts]), writes=arguments.write)


def part_of(records: Records, folder: Path, arguments: Namespace) -> str:
    """Write the table and the verdicts of one folder."""
    found = chosen(records, folder, arguments)
    rows = [
        [
            tool,
            mean_and_deviation(each(some, lambda record: record.accuracy), 1, scale=100),
            mean_and_deviation(each(some, lambda record: record.balanced_accuracy), 1, scale=100),
            mean_and_deviation(each(some, lambda record: record.seconds), 1),
        ]
        for tool, some in found.items()
    ]
    verdicts = [verdict(found, score) for score in SCORES]
    return "\n\n".join(
        [f"### {folder.name}", table(HEADINGS, rows), *(text for text in verdicts if text)]
    )


def verdict(found: dict[str, list[Record]], score: str) -> str:
    """Say how far the defaults are from the best of the others, and from the peers' mean."""
    means = {
        tool: statistics.fmean(known)
        for tool, some in found.items()
        if (known := [value for one in some if (value := getattr(one, score)) is not None])
    }
    ours = means.pop("finetune", None)
    peers = [mean for tool, mean in means.items() if tool not in OURS]
    if ours is None or not peers:
        return ""
    best = max(means, key=lambda tool: means[tool])
    to_best, to_mean = 100 * (ours - means[best]), 100 * (ours - statistics.fmean(peers))
    return (
        f"{SCORES[score].capitalize()}: {to_best:+.1f} points to the best of the others ({best}), "
        f"{_kept(to_best >= -BELOW_BEST)} at least {-BELOW_BEST}; {to_mean:+.1f} to the mean of "
        f"the peers, {_kept(to_mean >= ABOVE_MEAN)} at least +{ABOVE_MEAN}."
    )


def _kept(holds: bool) -> str:
    return "as demanded" if holds else "**short of** what is demanded,"


if __name__ == "__main__":
    main()
