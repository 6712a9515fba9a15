"""``finetune evaluate``: how good a trained run is, on its own split or on another folder."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.commands.measure import headline, measure, metrics_table
from finetune.config import EvaluateConfig
from finetune.data.discover import Sample, discover_folder
from finetune.data.splits import read_split
from finetune.errors import DataError, did_you_mean
from finetune.evaluation.metrics import Metrics
from finetune.evaluation.plots import plot_confusion_matrix
from finetune.exports.bundle import Model, load_model
from finetune.run import RunDirectory, open_run, read_record, write_json
from finetune.training.hardware import choose_workers


def run(config: EvaluateConfig, as_yaml: str) -> Metrics:
    """Measure a run's model and write the figures beside it.

    Raises:
        FinetuneError: the run, the split or the folder cannot be used.
    """
    del as_yaml
    console = Console()
    directory = open_run(config.run)
    model = load_model(directory.path)
    root, samples, name = _images(config, directory, model)
    metrics = measure(
        model,
        root,
        samples,
        batch_size=config.batch_size,
        workers=choose_workers(config.workers),
        table=directory.predictions(name),
        console=console,
    )
    output = config.output or directory.path / f"evaluation_{name}.json"
    write_json(output, {"run": str(directory.path), "data": str(root), **metrics.to_dict()})
    picture = output.with_suffix(".png")
    plot_confusion_matrix(metrics.confusion_matrix, model.class_names, picture)
    console.print(metrics_table(metrics, f"{name}, {metrics.n} images"))
    console.print(f"[bold]{escape(name)}: {escape(headline(metrics))}", soft_wrap=True)
    console.print(f"Written: {output}, {picture}", markup=False, highlight=False, soft_wrap=True)
    return metrics


def _images(
    config: EvaluateConfig, directory: RunDirectory, model: Model
) -> tuple[Path, list[Sample], str]:
    """Return the folder, its labelled images, and a name for the figures."""
    if config.root is None:
        samples = [s for s in read_split(directory.split) if s.split == config.split]
        if not samples:
            raise DataError(
                f"split={config.split}: this run has no image there. Choose another split, or "
                "measure on another folder: root=FOLDER."
            )
        return Path(read_record(directory)["data"]), samples, config.split
    folder = discover_folder(config.root, min_classes=1)
    unknown = [name for name in folder.class_names if name not in model.class_names]
    if unknown:
        raise DataError(
            f'{config.root}: the model does not know the class "{unknown[0]}"; it knows '
            f"{', '.join(model.class_names[:10])}.{did_you_mean(unknown[0], model.class_names)}"
        )
    return folder.root, list(folder.samples), folder.root.resolve().name
