"""``finetune export``: the model as one file, checked against the model before it is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, assert_never

import torch
from rich.console import Console
from torch import Tensor

from finetune.commands.dataset import columns_of_run
from finetune.config import ExportConfig, ExportFormat
from finetune.data.discover import Sample
from finetune.data.labelled_images import make_targets
from finetune.data.split_file import read_split
from finetune.errors import ConfigError, RunError
from finetune.exports.answering import read_pixels
from finetune.exports.bundle import Model, load_model
from finetune.exports.gate import Verdict, check_file
from finetune.exports.interface import Pixels
from finetune.run import open_run, read_record, replacing, write_json
from finetune.terminal import open_console

MAX_CALIBRATION_IMAGES = 100
SUFFIXES: Mapping[ExportFormat, str] = {
    "torchscript": ".ts",
    "onnx": ".onnx",
    "torch_export": ".pt2",
    "safetensors": ".safetensors",
    "backbone": ".safetensors",
}
Precision = Literal["float32", "float16", "int8"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Form:
    """What kind of file is wanted.

    Attributes:
        format: see `finetune.config.verbs.ExportConfig`.
        layout: of ``safetensors`` and ``backbone``.
        precision: of the weights.
    """

    format: ExportFormat = "torchscript"
    layout: Literal["timm", "torchvision"] = "timm"
    precision: Precision = "float32"

    @property
    def file_name(self) -> str:
        """Its name in a run directory."""
        parts = ["backbone" if self.format == "backbone" else "model"]
        parts += [self.layout] if SUFFIXES[self.format] == ".safetensors" else []
        parts += [self.precision] if self.precision != "float32" else []
        return ".".join(parts) + SUFFIXES[self.format]


@dataclass(frozen=True)
class Gate:
    """What a file must hold to; see `finetune.config.verbs.ExportConfig`."""

    tolerance: float | Literal["auto"] = "auto"
    max_accuracy_drop: float = 0.01
    images: int = 100
    is_timed: bool = True

    def tolerance_of(self, precision: Precision) -> float | None:
        """Give the largest difference of a probability; None for any."""
        if self.tolerance != "auto":
            return self.tolerance
        match precision:
            case "float32":
                return 1e-4
            case "float16":
                return 2e-2  # measured on real images: docs/exports.md
            case "int8":
                return None  # what counts is the accuracy
            case _:
                assert_never(precision)


def run(config: ExportConfig, as_yaml: str) -> Path:
    """Export a run's model.

    Returns:
        The file.

    Raises:
        FinetuneError: the run is none, or the file does not answer like the model.
    """
    del as_yaml
    console = open_console()
    directory = open_run(config.run)
    model = load_model(directory.path)
    form = Form(config.format, config.layout, config.precision)
    root = Path(read_record(directory)["data"])
    samples = read_split(directory.split, label_separator=columns_of_run(directory).separator)
    _check_there(root, samples, "val")
    if form.precision == "int8":
        _check_there(root, samples, "train")
    target = config.output or directory.path / form.file_name
    gate = Gate(config.tolerance, config.max_accuracy_drop, config.images)
    write_export(model, target, form, gate, root=root, samples=samples, console=console)
    return target


def write_export(
    model: Model,
    target: Path,
    form: Form,
    gate: Gate,
    *,
    root: Path,
    samples: Sequence[Sample],
    console: Console,
    known: Mapping[Path, Tensor] | None = None,
) -> Verdict:
    """Write a file that answers like the model, or none; the comparison beside it.

    Args:
        model: the bundle's.
        target: the file.
        form: what kind of file.
        gate: what it must hold to.
        root: where the images' paths begin.
        samples: validation images are compared, evenly chosen; int8 is calibrated on training
            images.
        console: for the outcome.
        known: the model's probabilities of files that it has answered just now.

    Raises:
        ConfigError: a combination that there is not, or another suffix than the format's.
        ExportError: the file does not answer like the model; nothing is written then.
        RunError: the folder of the file does not exist.
    """
    _check_form(form, target)
    chosen = _evenly([sample for sample in samples if sample.split == "val"], gate.images)
    targets = make_targets(
        chosen, model.class_names, is_multilabel=model.description.task == "multilabel"
    )
    with replacing(target) as temporary, console.status(f"Exporting {target.name}"):
        _write(model, temporary, form, root, samples)
        verdict = check_file(
            temporary,
            model,
            [root / sample.path for sample in chosen],
            targets,
            tolerance=gate.tolerance_of(form.precision),
            max_accuracy_drop=gate.max_accuracy_drop,
            known=known,
            gives_features=form.format == "backbone",
            is_timed=gate.is_timed,
        )
    write_json(target.with_name(f"{target.name}.check.json"), verdict.to_dict())
    console.print(_in_words(target, verdict), markup=False, highlight=False, soft_wrap=True)
    return verdict


def _write(model: Model, path: Path, form: Form, root: Path, samples: Sequence[Sample]) -> None:
    # Each format's packages are imported by those who ask for it.
    dtype = _DTYPES.get(form.precision, torch.float32)
    match form.format:
        case "torchscript":
            from finetune.exports.torchscript import save_torchscript

            save_torchscript(model, path, dtype=dtype)
        case "torch_export":
            from finetune.exports.torch_export import save_torch_export

            save_torch_export(model, path, dtype=dtype)
        case "onnx":
            _write_onnx(model, path, form.precision, root, samples)
        case "safetensors" | "backbone":
            from finetune.exports.layouts import save_weights

            with_head = form.format == "safetensors"
            save_weights(model, path, layout=form.layout, with_head=with_head, dtype=dtype)
        case _:
            assert_never(form.format)


def _write_onnx(
    model: Model, path: Path, precision: Precision, root: Path, samples: Sequence[Sample]
) -> None:
    from finetune.exports.onnx import quantise, save_onnx

    if precision != "int8":
        save_onnx(model, path, dtype=_DTYPES[precision])
        return
    chosen = _evenly([s for s in samples if s.split == "train"], MAX_CALIBRATION_IMAGES)

    def images() -> Iterator[Pixels]:
        for sample in chosen:
            yield read_pixels(root / sample.path, model.description.max_megapixels)

    with TemporaryDirectory() as folder:
        whole = Path(folder) / "float32.onnx"
        save_onnx(model, whole)
        quantise(whole, path, images())


def _check_form(form: Form, target: Path) -> None:
    suffix = SUFFIXES[form.format]
    if target.suffix.lower() != suffix:
        raise ConfigError(f"output: got {target.name}, expected a name that ends in {suffix}.")
    if form.precision == "int8" and form.format != "onnx":
        raise ConfigError(
            f"precision: got int8 with format={form.format}; int8 is for format=onnx alone. "
            "Use precision=float16, or format=onnx."
        )
    if not target.parent.is_dir():
        raise RunError(f"output={target}: there is no folder {target.parent}.")


def _check_there(root: Path, samples: Sequence[Sample], split: str) -> None:
    paths = [root / sample.path for sample in samples if sample.split == split]
    gone = [path for path in paths if not path.is_file()]
    if gone:
        raise RunError(
            f"{gone[0]} is not there any more; export needs the run's {len(paths)} images of "
            f"{split}, {len(gone)} of which are missing."
        )


def _evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose at most ``count``, evenly over the whole."""
    if len(samples) <= count:
        return list(samples)
    return [samples[place * len(samples) // count] for place in range(count)]


def _in_words(target: Path, verdict: Verdict) -> str:
    parts = [f"{target.name}: "]
    if verdict.same_labels is None:
        parts.append(
            f"the model's features on {verdict.images} raw validation images, within "
            f"{verdict.largest_difference:.1e} of the largest"
        )
    else:
        parts.append(
            f"same answer as the model on {verdict.same_labels} of {verdict.images} raw "
            f"validation images, probabilities within {verdict.largest_difference:.1e}; accuracy "
            f"{verdict.accuracy_file:.1%}, the model's {verdict.accuracy_model:.1%}"
        )
    for size, file_ms in verdict.latency_ms_file.items():
        noun = "an image" if size == 1 else f"{size} images"
        parts.append(f"; {noun} in {file_ms:.0f} ms, {verdict.latency_ms_model[size]:.0f} before")
    return "".join(parts) + f"; {verdict.megabytes:.1f} MB."
