"""The trainings of ``compare backbones=…``: one for each backbone, under one recipe."""

import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from finetune.commands.components import build_hardware
from finetune.config import TrainConfig
from finetune.errors import ConfigError, DataError, FinetuneError, ModelError, RunError
from finetune.models.backbones import pretrained_size_px
from finetune.run import RunDirectory

Trainings = Mapping[str, tuple[TrainConfig, str]]
"""By backbone: its config, and the same as composed."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def check_trainings(trainings: Trainings) -> Trainings:
    """Refuse what cannot be trained before the first training starts.

    Returns:
        The same, where a folder of weights is given with the file of each backbone.

    Raises:
        ConfigError: a backbone is unknown, has no weights in the folder, or the trainings want
            folds or several devices.
    """
    checked = {}
    for name, (config, as_yaml) in trainings.items():
        try:
            pretrained_size_px(name)
        except ModelError as error:
            reason = str(error).removeprefix("model: ")
            raise ConfigError(f"backbones: {reason}") from None
        if config.dataset.fold == "all":
            raise ConfigError(
                "dataset.fold: got all, which trains each backbone several times; compare on one "
                "division: leave it out, or dataset.fold=0."
            )
        if build_hardware(config).world_size > 1:
            raise ConfigError(
                "backbones: several are trained on one device, for processes are started once "
                "only; with more, train each by itself and compare the runs. Or: trainer.devices=1."
            )
        checked[name] = _with_own_weights(name, config, as_yaml, are_several=len(trainings) > 1)
    return checked


def _with_own_weights(
    name: str, config: TrainConfig, as_yaml: str, *, are_several: bool
) -> tuple[TrainConfig, str]:
    weights = config.model.weights
    if weights is None or not (are_several or weights.is_dir()):
        return config, as_yaml
    if not weights.is_dir():
        raise ConfigError(
            f"model.weights: got {weights}, expected a folder that has a file for each backbone, "
            f"such as {name}.safetensors; one file fits one backbone."
        )
    file = _find_weights(name, weights)
    values = yaml.safe_load(as_yaml)
    values["model"]["weights"] = str(file)
    model = config.model.model_copy(update={"weights": file})
    return (
        config.model_copy(update={"model": model}),
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True),
    )


def _find_weights(name: str, folder: Path) -> Path:
    """Find ``<name>.safetensors``, or the one file that begins with the name as a whole word."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    exact = [path for path in files if path.stem == name]
    begins = re.compile(rf"{re.escape(name)}[^a-zA-Z0-9]")
    found = exact or [path for path in files if begins.match(path.name)]
    if len(found) == 1:
        return found[0]
    several = ", ".join(path.name for path in found)
    raise ConfigError(
        f"model.weights: {folder} has {several or 'no file'} for `{name}`, expected "
        f"{name}.safetensors."
    )


def train_each(
    trainings: Trainings, console: Console, *, debug: bool
) -> tuple[dict[str, RunDirectory], dict[str, str]]:
    """Train one backbone after the other; one that fails does not stop the others.

    Args:
        trainings: checked.
        console: for a line before each.
        debug: show the traceback of a failure.

    Returns:
        The finished runs, and the reason of each failure, by backbone.

    Raises:
        DataError: about the images, which all share; before any training succeeded.
        RunError: likewise about the folder of the runs.
        FinetuneError: not one succeeded.
    """
    from finetune.commands import train  # only those who train wait for Lightning

    runs: dict[str, RunDirectory] = {}
    failures: dict[str, str] = {}
    for number, (name, (config, as_yaml)) in enumerate(trainings.items(), 1):
        console.print(f"\n[bold]{escape(name)}[/], {number} of {len(trainings)}")
        try:
            result = train.run(config, as_yaml)
        except Exception as error:
            if isinstance(error, DataError | RunError) and not runs:
                raise
            if debug:
                traceback.print_exc()
            failures[name] = _reason(error)
            console.print(f"{name} failed: {failures[name]}", style="yellow", markup=False)
            continue
        if result is not None:
            runs[name] = RunDirectory(result.run)
    if not runs:
        raise FinetuneError(_all_failed(failures))
    return runs, failures


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FinetuneError) else f"{type(error).__name__}: {text}"


def _all_failed(failures: Mapping[str, str]) -> str:
    lines: Sequence[str] = [f"  {name}: {reason}" for name, reason in failures.items()]
    return "\n".join(["None of the backbones could be trained.", *lines])
