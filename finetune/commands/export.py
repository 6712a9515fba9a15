"""``finetune export``: the best model as one file, checked against the model before it is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import assert_never

from rich.console import Console
from torch import Tensor

from finetune.commands.dataset import columns_of_run
from finetune.config import ExportConfig
from finetune.data.split_file import read_split
from finetune.errors import RunError
from finetune.exports.bundle import Model, load_model
from finetune.exports.parity import Parity, compare
from finetune.exports.torchscript import load_torchscript, save_torchscript
from finetune.run import open_run, read_record, replacing, write_json

MAX_IMAGES_COMPARED = 128


def run(config: ExportConfig, as_yaml: str) -> Path:
    """Export a run's model.

    Returns:
        The file.

    Raises:
        FinetuneError: the run is none, or the file does not answer like the model.
    """
    del as_yaml
    console = Console()
    directory = open_run(config.run)
    model = load_model(directory.path)
    root = Path(read_record(directory)["data"])
    samples = read_split(directory.split, label_separator=columns_of_run(directory).separator)
    paths = [root / sample.path for sample in samples if sample.split == "val"]
    gone = [path for path in paths if not path.is_file()]
    if gone:
        raise RunError(
            f"{gone[0]} is not there any more; export compares the file with the model on the "
            f"run's {len(paths)} validation images, {len(gone)} of which are missing."
        )
    match config.format:
        case "torchscript":
            target = config.output or directory.torchscript
            write_torchscript(model, target, paths, tolerance=config.tolerance, console=console)
        case _:
            assert_never(config.format)
    return target


def write_torchscript(
    model: Model,
    target: Path,
    paths: Sequence[Path],
    *,
    tolerance: float,
    console: Console,
    known: Mapping[Path, Tensor] | None = None,
) -> Parity:
    """Write a TorchScript file that answers like the model, or none; the comparison beside it.

    Args:
        model: the bundle's.
        target: the file.
        paths: validation images; at most 128 of them, evenly chosen, are compared.
        tolerance: largest allowed difference of a probability.
        console: for the outcome.
        known: the model's probabilities of files that it has answered just now.

    Raises:
        ExportError: the file does not answer like the model; nothing is written then.
        RunError: the folder of the file does not exist.
    """
    if not target.parent.is_dir():
        raise RunError(f"output={target}: there is no folder {target.parent}.")
    step = max(1, len(paths) // MAX_IMAGES_COMPARED)
    chosen = list(paths)[::step][:MAX_IMAGES_COMPARED]
    with replacing(target) as temporary:
        save_torchscript(model, temporary)
        parity = compare(
            load_torchscript(temporary), model, chosen, tolerance=tolerance, known=known
        )
    write_json(target.with_name(f"{target.name}.check.json"), parity.to_dict())
    console.print(
        f"{target.name}: same answer as the model on {parity.same_labels} of {parity.images} raw "
        f"validation images, probabilities within {parity.largest_difference:.1e}; "
        f"{target.stat().st_size / 1e6:.1f} MB.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return parity
