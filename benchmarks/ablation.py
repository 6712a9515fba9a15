"""What the recipe is made of: one setting changed at a time, and everything else as it chooses.

    .venv/bin/python benchmarks/ablation.py FOLDER… --weights FILE [--seeds 0 1] [--write]
        [--option NAME=VALUE …] [--only base freeze=none …]

Each training ends with up to four sets of weights, all measured on validation, so one run gives
four figures. Runs are kept in runs/ablation and not repeated; decoded images and features are
shared between them.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from report import mean_and_deviation, show, table

import finetune

REPOSITORY = Path(__file__).resolve().parents[1]
VARIANTS: dict[str, tuple[str, ...]] = {
    "base": (),
    # With the rates that the recipe takes where the head starts at zero.
    "freeze=none": ("freeze=none", "optimizer.lr=3e-3", "optimizer.backbone_lr_factor=0.033"),
    "lr=1e-4": ("optimizer.lr=1e-4",),
    "lr=1e-3": ("optimizer.lr=1e-3",),
    "lr=3e-3": ("optimizer.lr=3e-3",),
    "layer_decay=0.9": ("optimizer.layer_decay=0.9",),
    "batchnorm=train": ("freeze.batchnorm=train",),
    "augmentation=none": ("augmentation=none",),
    "augmentation=light": ("augmentation=light",),
    "augmentation=standard": ("augmentation=standard",),
    "augmentation=trivial": ("augmentation=trivial",),
    "mixup_alpha=0.2": ("augmentation.mixup_alpha=0.2",),
    "label_smoothing=0": ("loss.label_smoothing=0",),
    "half the epochs": ("trainer.epochs=3",),
    "twice the epochs": ("trainer.epochs=12",),
    "batchnorm_only": ("freeze=batchnorm_only",),
}
CANDIDATES = ("probe", "fine-tuned", "moving average", "average of probe and fine-tuned")


def main() -> None:
    """Train what is missing, and print the table of each folder."""
    arguments = parse()
    for folder in arguments.folders:
        rows = []
        for name in arguments.only or VARIANTS:
            results = [run(folder, name, seed, arguments) for seed in arguments.seeds]
            rows.append([name, *cells(results)])
        headings = ["changed", *CANDIDATES, "chosen", "log loss, fine-tuned", "seconds"]
        options = " ".join(arguments.option)
        show(
            f"What the recipe is made of: {folder.name}",
            f"Validation {results[0]['monitor'].removeprefix('val_').replace('_', ' ')} in percent "
            f"({results[0]['val']['n']} images), seeds {arguments.seeds}; `{options}` in each "
            f"row.\n\n{table(headings, rows)}",
            writes=arguments.write,
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--only", nargs="+", choices=VARIANTS)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    return parser.parse_args()


def run(folder: Path, name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, unless that was done before, and return ``metrics.json`` with the seconds."""
    runs = REPOSITORY / "runs" / "ablation"
    options = "-".join(option.replace("/", "_") for option in arguments.option)
    label = f"{name}-{options}-{seed}".replace("=", " ").replace(",", " ")
    kept = runs / folder.name / f"{label}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    print(f"{folder.name}, seed {seed}: {name} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    result = finetune.train(
        f"dataset.root={folder}",
        f"model.weights={arguments.weights}",
        f"runs={runs}",
        f"seed={seed}",
        "dataset.cache=disk",
        *arguments.option,
        *VARIANTS[name],
    )
    figures = json.loads((result.run / "metrics.json").read_text())
    figures["seconds"] = time.monotonic() - began
    kept.write_text(json.dumps(figures))
    return dict(figures)


def cells(results: list[dict[str, Any]]) -> list[str]:
    """Write the figures of one row."""
    key = results[0]["monitor"]

    def column(name: str, value: str, scale: float, digits: int) -> str:
        found = [result["candidates"].get(name, {}).get(value) for result in results]
        return mean_and_deviation(found, digits, scale=scale)

    chosen = [result["val"][key.removeprefix("val_")] for result in results]
    return [
        *(column(name, key, 100, 1) for name in CANDIDATES),
        mean_and_deviation(chosen, 1, scale=100),
        column("fine-tuned", "val_loss", 1, 3),
        mean_and_deviation([result["seconds"] for result in results], 0),
    ]


if __name__ == "__main__":
    main()
