"""``finetune inspect``: what a folder of images is like, before anything is trained on it."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.commands.dataset import audit_images, find_images, split_images
from finetune.config import InspectConfig
from finetune.data.audit import Audit, Finding, Range
from finetune.data.discover import ImageFolder
from finetune.run import write_json

EXAMPLES_SHOWN = 3
STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def run(config: InspectConfig, as_yaml: str) -> Audit:
    """Print counts per class and split, sizes, types and findings; write them where asked.

    Raises:
        FinetuneError: the folder is no data set.
    """
    del as_yaml
    console = Console()
    folder = find_images(config.dataset)
    audit = audit_images(config.dataset, folder, console=console)
    divided = split_images(config.dataset, folder, audit, seed=config.seed)
    console.print(_counts(folder, divided))
    console.print()
    console.print(_summary(folder, audit))
    for finding in audit.findings:
        console.print(_describe(finding), soft_wrap=True)
    if not audit.findings:
        console.print("Nothing is wrong with these images.")
    if config.output is not None:
        write_json(config.output, audit.to_dict())
        console.print(f"Written: {config.output}", markup=False, highlight=False)
    return audit


def _counts(folder: ImageFolder, divided: ImageFolder) -> Table:
    """Count the readable images of each class in the splits that a training would use."""
    splits = [split for split in ("train", "val", "test") if _count(divided, split)]
    table = Table(title=escape(str(folder.root)), title_justify="left", box=None, padding=(0, 2))
    table.add_column("class")
    for heading in (*splits, "all"):
        table.add_column(heading, justify="right")
    table.add_column("share", justify="right")
    total = len(divided.samples)
    for name in folder.class_names:
        counts = [_count(divided, split, name) for split in splits]
        share = f"{100 * sum(counts) / total:.1f} %"
        table.add_row(escape(name), *map(str, counts), str(sum(counts)), share)
    sums = [str(_count(divided, split)) for split in splits]
    table.add_row("[bold]all", *sums, str(total), "100 %")
    if not any(sample.split for sample in folder.samples):
        table.caption = "The folder has no splits; this is how a training would divide it."
        table.caption_justify = "left"
    return table


def _count(folder: ImageFolder, split: str, name: str | None = None) -> int:
    return sum(
        sample.split == split and name in (None, sample.class_name) for sample in folder.samples
    )


def _summary(folder: ImageFolder, audit: Audit) -> str:
    sizes = (
        f"width {_range(audit.width_px)}, height {_range(audit.height_px)} px"
        if audit.width_px and audit.height_px
        else "no readable image"
    )
    formats = ", ".join(f"{name} {count}" for name, count in audit.formats.items())
    modes = ", ".join(f"{name} {count}" for name, count in audit.modes.items())
    return (
        f"{audit.num_images} images in {len(folder.class_names)} classes\n"
        f"sizes    {sizes} (smallest, middle, largest)\nformats  {formats}\nmodes    {modes}"
    )


def _range(values: Range) -> str:
    return f"{values.min:g}, {values.median:g}, {values.max:g}"


def _describe(finding: Finding) -> str:
    shown = ", ".join(repr(path) for path in finding.paths[:EXAMPLES_SHOWN])
    more = len(finding.paths) - EXAMPLES_SHOWN
    examples = f"\n    {shown}" + (f" and {more} more" if more > 0 else "") if shown else ""
    text = f"{finding.severity} {finding.name}: {finding.message} {finding.remedy}{examples}"
    return f"[{STYLES[finding.severity]}]{escape(text)}"
