"""``finetune evaluate``: how good a trained run is, on its own split or on another folder."""

from collections.abc import Iterable
from pathlib import Path

from rich.markup import escape

from finetune.commands.dataset import columns_of_run, list_manifest
from finetune.commands.evidence import measure_answers
from finetune.commands.measure import (
    AnyMetrics,
    answer_images,
    headline,
    metrics_table,
    plot_metrics,
    write_predictions,
)
from finetune.commands.report import Story, worries_of, write_story
from finetune.config import EvaluateConfig
from finetune.data.discover import Sample, discover_folder
from finetune.data.split_file import read_split
from finetune.errors import DataError, did_you_mean
from finetune.exports.bundle import Model, load_model
from finetune.run import RunDirectory, open_run, read_figures, read_record, write_json
from finetune.terminal import open_console
from finetune.training.hardware import choose_workers


def run(config: EvaluateConfig, as_yaml: str) -> AnyMetrics:
    """Measure a run's model and write the figures beside it.

    Raises:
        FinetuneError: the run, the split, the folder or the manifest cannot be used.
    """
    del as_yaml
    console = open_console()
    directory = open_run(config.run)
    model = load_model(directory.path)
    root, samples, name = _images(config, directory, model)
    answers = answer_images(
        model,
        root,
        samples,
        batch_size=config.batch_size,
        workers=choose_workers(config.workers),
        console=console,
        may_leave_out=True,
    )
    write_predictions(directory.predictions(name), model, answers, samples)
    record = read_record(directory)
    known = read_figures(directory) if directory.metrics.is_file() else {}
    measured = measure_answers(
        model,
        answers,
        config.evidence,
        seed=int(record.get("seed", 0)),
        known_points=known.get("val", {}).get("operating_points"),
    )
    metrics, left_out = measured.metrics, answers.left_out
    output = config.output or directory.path / f"evaluation_{name}.json"
    where = {"run": str(directory.path), "data": str(root), "left_out": dict(left_out)}
    write_json(output, {**where, **measured.to_dict()})
    picture = output.with_suffix(".png")
    plot_metrics(metrics, picture)
    written = [output, picture]
    if config.evidence.report:
        written.append(output.with_suffix(".html"))
        story = Story(
            run=directory,
            record=record,
            model=model,
            measured={name: measured},
            title=f"{name}, measured on {directory.path.name}",
            dataset=f"{root}" if config.root or config.manifest else root.name,
            monitor=str(known.get("monitor", "accuracy")).removeprefix("val_"),
            samples={},
            pictures=config.evidence.pictures,
        )
        with console.status(f"Writing {written[-1].name}"):
            write_story(story, written[-1], worries_of(story))
    console.print(metrics_table(metrics, f"{name}, {metrics.n} images"))
    console.print(f"[bold]{escape(name)}: {escape(headline(metrics))}", soft_wrap=True)
    if left_out:
        path, reason = next(iter(left_out.items()))
        console.print(
            f"Left out, as they cannot be read: {len(left_out)} of {len(samples)}; the first, "
            f"{path}: {reason}.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    names = ", ".join(map(str, written))
    console.print(f"Written: {names}", markup=False, highlight=False, soft_wrap=True)
    return metrics


def _images(
    config: EvaluateConfig, directory: RunDirectory, model: Model
) -> tuple[Path, list[Sample], str]:
    """Return the folder, its labelled images, and a name for the figures."""
    task = model.description.task
    if config.root is None and config.manifest is None:
        rows = read_split(directory.split, label_separator=columns_of_run(directory).separator)
        samples = [sample for sample in rows if sample.split == config.split]
        _check_labels(model, {name for row in samples for name in row.labels}, directory.split)
        if not samples:
            raise DataError(
                f"split={config.split}: this run has no image there. Choose another split, or "
                "measure on other images: root=FOLDER or manifest=FILE."
            )
        return Path(read_record(directory)["data"]), samples, config.split
    if config.manifest is not None:
        columns = columns_of_run(directory)
        folder = list_manifest(config.manifest, config.root, columns, min_classes=1)
        name = config.manifest.stem
    elif task == "multilabel" or config.root is None:
        raise DataError(
            f"root={config.root}: this model gives several labels to an image, for which a folder "
            "has one class per image too few; give a table of labels: manifest=FILE."
        )
    else:
        folder = discover_folder(config.root, min_classes=1)
        name = folder.root.resolve().name
    _check_labels(model, folder.class_names, config.manifest or config.root or folder.root)
    return folder.root, list(folder.samples), name


def _check_labels(model: Model, labels: Iterable[str], where: Path) -> None:
    """Refuse a class that the model has no answer for."""
    unknown = [label for label in labels if label not in model.class_names]
    if unknown:
        raise DataError(
            f'{where}: the model does not know the class "{unknown[0]}"; '
            f"it knows {', '.join(model.class_names[:10])}."
            f"{did_you_mean(unknown[0], model.class_names)}"
        )
