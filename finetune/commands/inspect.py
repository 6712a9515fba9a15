"""``finetune inspect``: what images are like, before anything is trained on them."""

from pathlib import Path

import rich
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from finetune.commands.contact_sheet import draw_contact_sheet
from finetune.commands.dataset import (
    audit_images,
    class_counts,
    columns_of,
    data_name,
    find_images,
    split_images,
)
from finetune.commands.loaders import build_train_images
from finetune.commands.recipe import settle_inspected
from finetune.config import InspectConfig, settled
from finetune.data.audit import Audit, Finding, Range, check_findings
from finetune.data.discover import ImageFolder
from finetune.data.preprocess import Preprocess
from finetune.data.split_file import write_split
from finetune.errors import DataError
from finetune.models.backbones import pretrained_size_px
from finetune.run import check_writable, write_json

EXAMPLES_SHOWN = 2
CLASSES_SHOWN = 20
STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def run(config: InspectConfig, as_yaml: str) -> Audit:
    """Print counts, sizes, types and findings; write them, the split and a picture.

    Raises:
        FinetuneError: the folder is no data set.
    """
    del as_yaml
    console = rich.get_console()
    folder = find_images(config.dataset, config.task)
    audit = audit_images(config.dataset, folder, cache_folder=config.cache_folder, console=console)
    first = config.dataset
    if first.fold == "all":
        first = first.model_copy(update={"fold": 0})
    divided = split_images(first, folder, audit, task=config.task, seed=config.seed)
    console.print(_counts(folder, divided))
    if not any(sample.split for sample in folder.samples):
        console.print("  No splits are given; so would a training divide the images.", style="dim")
    console.print()
    console.print(_summary(divided, audit), soft_wrap=True)
    console.print()
    console.print(_findings(audit))
    for note in audit.notes:
        console.print(note, style="yellow", markup=False)
    if config.output is not None:
        _write(config, config.output / data_name(config.dataset), audit, divided, console)
    _say_what_is_next(audit, console)
    return audit


def _counts(folder: ImageFolder, divided: ImageFolder) -> Table:
    """Count the readable images of each class in the splits that a training would use."""
    splits = [
        split
        for split in ("train", "val", "test")
        if any(sample.split == split for sample in divided.samples)
    ]
    counts = {split: class_counts(divided, split) for split in splits}
    table = Table(title=escape(str(folder.root)), title_justify="left", box=None, padding=(0, 2))
    table.add_column("class")
    for heading in (*splits, "all"):
        table.add_column(heading, justify="right")
    table.add_column("share", justify="right")
    total = len(divided.samples)
    for name in folder.class_names[:CLASSES_SHOWN]:
        row = [counts[split][name] for split in splits]
        share = f"{100 * sum(row) / total:.1f} %"
        table.add_row(escape(name), *map(str, row), str(sum(row)), share)
    if len(folder.class_names) > CLASSES_SHOWN:
        table.add_row(f"… {len(folder.class_names) - CLASSES_SHOWN} more")
    sums = [sum(sample.split == split for sample in divided.samples) for split in splits]
    table.add_row("[bold]images", *map(str, sums), str(total), "100 %")
    return table


def _summary(divided: ImageFolder, audit: Audit) -> str:
    lines = {
        "sizes": (
            f"width {_range(audit.width_px)}, height {_range(audit.height_px)} px "
            "(smallest, middle, largest)"
            if audit.width_px and audit.height_px
            else "no readable image"
        ),
        "formats": ", ".join(f"{name} {count}" for name, count in audit.formats.items()),
        "modes": ", ".join(f"{name} {count}" for name, count in audit.modes.items()),
        "groups": _groups(divided),
    }
    return "\n".join(f"{name:<9}{escape(text)}" for name, text in lines.items() if text)


def _groups(divided: ImageFolder) -> str:
    splits: dict[str, set[str | None]] = {}
    for sample in divided.samples:
        if sample.group is not None:
            splits.setdefault(sample.group, set()).add(sample.split)
    if not splits:
        return ""
    parted = sum(len(sides) > 1 for sides in splits.values())
    alone = sum(sample.group is None for sample in divided.samples)
    where = f"{parted} of them in several splits" if parted else "each on one side of the split"
    others = f"; {alone} {'image' if alone == 1 else 'images'} without one" if alone else ""
    return f"{len(splits)}, {where}{others}"


def _range(values: Range) -> str:
    return f"{values.min:g}, {values.median:g}, {values.max:g}"


def _findings(audit: Audit) -> RenderableType:
    if not audit.findings:
        return "Nothing is wrong with these images."
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in audit.findings:
        severity = "accepted" if finding.accepted else finding.severity
        style = "dim" if finding.accepted else STYLES[finding.severity]
        table.add_row(Text(severity, style=style), _describe(finding, style))
    return table


def _describe(finding: Finding, style: str) -> Text:
    text = Text.assemble((finding.name, style), f": {finding.message} {finding.remedy}")
    shown = ", ".join(repr(path) for path in finding.paths[:EXAMPLES_SHOWN])
    more = len(finding.paths) - EXAMPLES_SHOWN
    if shown:
        text.append(f"\n{shown}" + (f" and {more} more" if more > 0 else ""), style="dim")
    return text


def _write(
    config: InspectConfig, folder: Path, audit: Audit, divided: ImageFolder, console: Console
) -> None:
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "audit.json", audit.to_dict())
    separator = columns_of(config.dataset, config.task).separator or "|"
    write_split(folder / "split.csv", divided.samples, label_separator=separator)
    config = settle_inspected(config, divided, audit)
    typed_px = config.model.image_size_px
    native_px = pretrained_size_px(config.model.backbone)
    size_px = native_px if typed_px is None else settled(typed_px)
    # What a picture shows depends on the size alone, not on what the weights were trained with.
    preprocess = Preprocess(
        size_px, config.model.resize_mode, 1.0, "bilinear", (0, 0, 0), (1, 1, 1)
    )
    images = build_train_images(config, divided, preprocess)
    samples = [sample for sample in divided.samples if sample.split == "train"]
    draw_contact_sheet(folder / "contact_sheet.png", samples, images, preprocess)
    console.print(
        f"\nWritten to {folder}: audit.json, split.csv, contact_sheet.png",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _say_what_is_next(audit: Audit, console: Console) -> None:
    try:
        check_findings(audit)
    except DataError:
        names = [f.name for f in audit.findings if f.severity == "error" and not f.accepted]
        console.print(
            f"[bold red]A training would stop here.[/] Mend it, or accept it with "
            f"dataset.accept={escape('[' + ','.join(names) + ']')}",
            soft_wrap=True,
        )
