"""What a finished training leaves: the model, its figures and pictures, its export, a last word."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.commands.components import head_arguments
from finetune.commands.dataset import paths_of
from finetune.commands.export import write_torchscript
from finetune.commands.measure import AnyMetrics, headline, measure, metrics_table, plot_metrics
from finetune.config import Task, TrainConfig
from finetune.data.discover import ImageFolder
from finetune.data.preprocess import Preprocess
from finetune.evaluation.plots import plot_learning_curves
from finetune.exports.bundle import add_metrics, load_model, save_bundle
from finetune.models.classifier import Classifier
from finetune.run import RunDirectory, command_line, typed, versions, write_json
from finetune.training.callbacks import EpochTable
from finetune.training.checkpoints import load_checkpoint
from finetune.training.hardware import choose_workers

EXPORT_TOLERANCE = 1e-4
"""Largest difference of probabilities between the model and its TorchScript file."""


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves.

    Attributes:
        run: the run directory.
        metrics: by split: ``val``, and ``test`` where there is one.
    """

    run: Path
    metrics: dict[str, AnyMetrics]


def finish(
    config: TrainConfig,
    folder: ImageFolder,
    directory: RunDirectory,
    classifier: Classifier,
    preprocess: Preprocess,
    epochs: EpochTable,
    console: Console,
) -> TrainResult:
    """Turn the best checkpoint into a bundle, measure that, and export it."""
    weights = load_checkpoint(directory.best_checkpoint)["state_dict"]
    prefix = "classifier."
    classifier.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    )
    save_bundle(
        directory.path,
        classifier=classifier,
        task=config.task,
        preprocess=preprocess,
        backbone_name=config.model.backbone,
        head_name=config.head.name,
        head_arguments=head_arguments(config),
        class_names=folder.class_names,
        max_megapixels=config.dataset.max_megapixels,
        versions=versions(),
        command=command_line(),
    )
    model = load_model(directory.path)
    workers = choose_workers(config.dataset.workers)
    metrics: dict[str, AnyMetrics] = {}
    for split in ("val", "test"):
        samples = [sample for sample in folder.samples if sample.split == split]
        if samples:
            metrics[split] = measure(
                model,
                folder.root,
                samples,
                batch_size=config.trainer.batch_size,
                workers=workers,
                table=directory.predictions(split),
                console=console,
            )
    figures = {split: values.to_dict() for split, values in metrics.items()}
    chosen = {"monitor": epochs.monitor, "best_epoch": epochs.best_epoch}
    write_json(directory.metrics, {**figures, **chosen})
    add_metrics(directory.path, figures)
    plot_learning_curves(
        epochs.rows, directory.curves, monitor=epochs.monitor, best_epoch=epochs.best_epoch
    )
    shown = metrics.get("test", metrics["val"])
    plot_metrics(shown, directory.picture(config.task))
    write_torchscript(
        load_model(directory.path),
        directory.torchscript,
        paths_of(folder, "val"),
        tolerance=EXPORT_TOLERANCE,
        console=console,
    )
    return TrainResult(directory.path, metrics)


def say_what_is_there(
    result: TrainResult, directory: RunDirectory, task: Task, seconds: float, console: Console
) -> None:
    """Close with the figures, where everything lies, and the next command."""
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
