"""The command line that `peers.py` and `zero_tuning.py` share, and the loop that it asks for."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from report import machine
from tools import OURS, TOOLS, Bench, Record, append_record, read_records

REPOSITORY = Path(__file__).resolve().parents[1]

Records = Mapping[tuple[str, str, int], Record]


def parse(description: str | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="of images, as `train` takes it")
    add("--weights", type=Path, required=True, help="of a resnet18, safetensors")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=5, help="of the peers; 5")
    add("--only", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="TOOL", help=str(TOOLS))
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="for ours; repeatable")
    add("--peers-python", type=Path, default=REPOSITORY / ".venv-peers" / "bin" / "python")
    add("--records", type=Path, default=REPOSITORY / "runs" / "benchmarks" / "records.jsonl")
    add("--again", action="store_true", help="measure also what the records have")
    add("--write", action="store_true", help="put the table into RESULTS.md")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> Records:
    """Run what is asked for and not yet in the records, one after another; return all records."""
    wanted = [
        (tool, folder, seed)
        for folder in arguments.folders
        for seed in arguments.seeds
        # Ours first, since its split is what the peers get.
        for tool in sorted(arguments.only, key=lambda tool: tool not in OURS)
    ]
    known = {} if arguments.again else read_records(arguments.records)
    missing = [one for one in wanted if not _is_known(known, one, arguments.epochs)]
    bench = Bench(
        arguments.weights,
        arguments.peers_python,
        epochs=arguments.epochs,
        options=arguments.option,
        machine=machine(),
    )
    try:
        for tool, folder, seed in missing:
            print(f"{folder.name}, seed {seed}: {tool} …", file=sys.stderr, flush=True)
            try:
                record = bench.run(tool, folder, seed)
            except RuntimeError as error:  # the others are still worth having
                print(error, file=sys.stderr, flush=True)
                continue
            print(f"  {record.seconds:.1f} s, {record.accuracy:.3f}", file=sys.stderr, flush=True)
            append_record(arguments.records, record)
    finally:
        bench.close()
    return read_records(arguments.records)


def _is_known(known: Records, wanted: tuple[str, Path, int], epochs: int) -> bool:
    tool, folder, seed = wanted
    record = known.get((tool, folder.name, seed))
    return record is not None and record.epochs in (None, epochs)


def chosen(
    records: Records, folder: Path, arguments: argparse.Namespace
) -> dict[str, list[Record]]:
    """Give the records of one folder by tool, in the order of seeds; tools without any left out."""
    found = {
        tool: [
            records[key]
            for seed in arguments.seeds
            if (key := (tool, folder.name, seed)) in records
            and records[key].epochs in (None, arguments.epochs)
        ]
        for tool in TOOLS
    }
    return {tool: some for tool, some in found.items() if some}


def each(records: list[Record], value: Callable[[Record], float | None]) -> list[float | None]:
    """Take a value of each record."""
    return [value(record) for record in records]
