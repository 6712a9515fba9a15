"""How long ours and its peers take, and what they reach, as whole processes on the same images.

    .venv/bin/python benchmarks/peers.py --weights resnet18.safetensors FOLDER …

All start from the same weights and are validated on the same images; each peer trains as its own
documentation says (benchmarks/peers/). One runs after the other, without a network. Ours begins
with an empty cache each time. What was measured stays in runs/benchmarks/records.jsonl, so that an
interrupted comparison goes on where it was.
"""

from argparse import Namespace
from pathlib import Path

from measuring import Records, chosen, each, measure, parse
from report import mean_and_deviation, show, table
from tools import OURS, Record

HEADINGS = (
    "tool",
    "time, s",
    "× finetune",
    *(f"{tool} reaches its accuracy after, s" for tool in OURS),
    "accuracy, %",
    "balanced accuracy, %",
    "peak memory, MiB",
)
NOTE = """\
Whole processes from start to end, one after the other; the same float32 weights and validation \
images. Peers: {epochs} epochs. Accuracy is that of the epoch that a tool keeps (fastai: the last; \
the others: the best). Memory is that of the largest process. {seeds} seed(s); ± is the standard \
deviation."""


def main() -> None:
    """Measure, and print a table for each folder."""
    arguments = parse(__doc__)
    records = measure(arguments)
    note = NOTE.format(epochs=arguments.epochs, seeds=len(arguments.seeds))
    tables = [table_of(records, folder, arguments) for folder in arguments.folders]
    show("Peers", "\n\n".join([note, *tables]), writes=arguments.write)


def table_of(records: Records, folder: Path, arguments: Namespace) -> str:
    """Write the table of one folder."""
    found = chosen(records, folder, arguments)
    default = {record.seed: record for record in found.get("finetune", [])}
    rows = []
    for tool, some in found.items():
        ratios = [r.seconds / default[r.seed].seconds for r in some if r.seed in default]
        reached = [
            "–" if tool in OURS else reach(found.get(own, []), some, digits=1) for own in OURS
        ]
        rows.append(
            [
                tool,
                mean_and_deviation(each(some, lambda record: record.seconds), 1),
                mean_and_deviation(ratios, 2),
                *reached,
                mean_and_deviation(each(some, lambda record: record.accuracy), 1, scale=100),
                mean_and_deviation(
                    each(some, lambda record: record.balanced_accuracy), 1, scale=100
                ),
                mean_and_deviation(each(some, lambda record: record.peak_mib), 0),
            ]
        )
    return f"### {folder.name}\n\n{table(HEADINGS, rows)}"


def reach(ours: list[Record], peers: list[Record], *, digits: int) -> str:
    """Say when ours knew a model that is as good as the peer's last word, seed by seed."""
    goals = {record.seed: record.accuracy for record in peers}
    times = [
        seconds_to(record, goals[record.seed], scores="accuracy")
        for record in ours
        if record.seed in goals
    ]
    missed = times.count(None)
    text = mean_and_deviation(times, digits)
    return f"{text} (not in {missed} of {len(times)})" if missed else text


def seconds_to(record: Record, goal: float, *, scores: str) -> float | None:
    """Give the seconds from the start of the process to the first score of at least ``goal``."""
    enough = [row["seconds"] for row in record.rows if (row[scores] or 0.0) >= goal - 1e-6]
    return min(enough, default=None)


if __name__ == "__main__":
    main()
