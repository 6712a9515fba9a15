"""What a finished training leaves: the model, its figures and pictures, its export, a last word."""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from torch import Tensor

from finetune.commands.candidates import PROBE, Selection, State, probe_state
from finetune.commands.components import head_arguments, monitor_key, monitor_mode
from finetune.commands.export import Form, Gate, write_export
from finetune.commands.measure import (
    AnyMetrics,
    headline,
    measure,
    metrics_table,
    monitored,
    plot_metrics,
)
from finetune.commands.setup import Setup
from finetune.config import TrainConfig
from finetune.evaluation.plots import plot_learning_curves
from finetune.exports.bundle import Model, add_metrics, load_model, save_bundle
from finetune.run import command_line, typed, versions, write_json
from finetune.training.hardware import choose_workers, forward_batch_size


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves.

    Attributes:
        run: the run directory.
        metrics: by split: ``val``, and ``test`` where there is one.
    """

    run: Path
    metrics: dict[str, AnyMetrics]


def finish(setup: Setup, selection: Selection) -> TrainResult:
    """Turn the chosen weights into a bundle, measure that, and export it."""
    config, folder, run = setup.config, setup.folder, setup.run
    console, epochs = setup.console, setup.epochs

    def save(state: State) -> Model:
        setup.classifier.load_state_dict(state)
        save_bundle(
            run.path,
            classifier=setup.classifier,
            task=config.task,
            preprocess=setup.preprocess,
            backbone_name=config.model.backbone,
            head_name=config.head.name,
            head_arguments=head_arguments(config),
            class_names=folder.class_names,
            max_megapixels=config.dataset.max_megapixels,
            versions=versions(),
            command=command_line(),
        )
        return load_model(run.path)

    def measure_split(model: Model, split: str) -> AnyMetrics:
        return measure(
            model,
            folder.root,
            [sample for sample in folder.samples if sample.split == split],
            batch_size=forward_batch_size(model.device),
            workers=choose_workers(config.dataset.workers),
            table=run.predictions(split),
            console=console,
            answers=answers,
        )

    name = selection.name
    answers: dict[Path, Tensor] = {}
    metrics = {"val": measure_split(save(selection.state), "val")}
    probe = probe_state(run)
    if probe is not None and name != PROBE and not _holds(config, metrics["val"], selection):
        console.print("Measured in float32, that is no better than the probe, which is kept.")
        name = PROBE
        metrics["val"] = measure_split(save(probe), "val")
    if any(sample.split == "test" for sample in folder.samples):
        metrics["test"] = measure_split(load_model(run.path), "test")
    figures = {split: values.to_dict() for split, values in metrics.items()}
    chosen = {
        "monitor": epochs.monitor,
        "best_epoch": epochs.best_epoch,
        "chosen": name,
        "candidates": {
            candidate: {key: None if math.isnan(value) else value for key, value in row.items()}
            for candidate, row in selection.values.items()
        },
    }
    write_json(run.metrics, {**figures, **chosen})
    add_metrics(run.path, figures)
    plot_learning_curves(
        epochs.rows, run.curves, monitor=epochs.monitor, best_epoch=epochs.best_epoch
    )
    shown = metrics.get("test", metrics["val"])
    plot_metrics(shown, run.picture(config.task))
    write_export(
        load_model(run.path),
        run.torchscript,
        Form("torchscript"),
        Gate(is_timed=False),
        root=folder.root,
        samples=folder.samples,
        console=console,
        known=answers,
    )
    return TrainResult(run.path, metrics)


def _holds(config: TrainConfig, measured: AnyMetrics, selection: Selection) -> bool:
    """Tell whether the chosen weights are still as good as the probe.

    Training measures in its own precision, the bundle in float32: an image may differ.
    """
    key = monitor_key(config)
    sign = 1 if monitor_mode(config) == "max" else -1
    value = monitored(measured, config.dataset.monitor)
    return value is None or sign * value >= sign * selection.values[PROBE][key] - 1e-6


def say_what_is_there(setup: Setup, result: TrainResult, seconds: float) -> None:
    """Close with the figures, where everything lies, and the next command."""
    console, directory, task = setup.console, setup.run, setup.config.task
    for split, metrics in result.metrics.items():
        console.print()
        console.print(metrics_table(metrics, f"{split}, {metrics.n} images"))
        console.print(f"[bold]{split}: {escape(headline(metrics))}", soft_wrap=True)
    lines = [
        "",
        f"Done in {seconds:.0f} s. Everything is in {directory.path}:",
        "  model.json, model.safetensors   the model      model.ts   TorchScript",
        "  metrics.json, metrics.csv       the figures    curves.png, contact_sheet.png, "
        f"{directory.picture(task).name}",
        "Next:",
        f"  {typed('predict', run=directory.path, input='IMAGES', output='labels.csv')}",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
