"""What a finished training leaves: the model, its figures and pictures, its export, a last word."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from finetune.commands.candidates import PROBE, Selection, State, probe_state
from finetune.commands.components import head_arguments, monitor_key, monitor_mode
from finetune.commands.evidence import Measured, calibrate_bundle, measure_answers
from finetune.commands.export import Form, Gate, write_export
from finetune.commands.gain import Gain
from finetune.commands.live_curves import draw_curves
from finetune.commands.measure import (
    Answers,
    AnyMetrics,
    answer_images,
    headline,
    metrics_of,
    metrics_table,
    monitored,
    plot_metrics,
    write_predictions,
)
from finetune.commands.setup import Setup
from finetune.commands.training_report import report_training
from finetune.config import TrainConfig
from finetune.evaluation.worries import Worry
from finetune.exports.bundle import Model, add_metrics, load_model, save_bundle
from finetune.run import command_line, typed, versions, write_json
from finetune.training.hardware import choose_workers, forward_batch_size


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves.

    Attributes:
        run: the run directory.
        metrics: by split: ``val``, and ``test`` where there is one.
        worries: the most important things to worry about, worst first.
        gain: what the pretrained weights were worth; None where that was not measured.
    """

    run: Path
    metrics: dict[str, AnyMetrics]
    worries: tuple[Worry, ...] = ()
    gain: Gain | None = None


def finish(
    setup: Setup, selection: Selection, started: float, gain: Gain | None = None
) -> TrainResult:
    """Turn the chosen weights into a bundle, calibrate and measure that, export it, report.

    Args:
        setup: of the training.
        selection: the weights.
        started: when the training began, by `time.monotonic`.
        gain: what the pretrained weights were worth.
    """
    config, run, epochs = setup.config, setup.run, setup.epochs
    model, val, name = _answer_val(setup, selection)
    model, calibrated = calibrate_bundle(run.path, model, val, config.evidence, seed=config.seed)
    measured = {"val": _measure(setup, model, val, "val", None)}
    if any(sample.split == "test" for sample in setup.folder.samples):
        points = [asdict(point) for point in measured["val"].operating_points]
        test = _answer(setup, model, "test")
        measured["test"] = _measure(setup, model, test, "test", points)
    figures = {split: found.to_dict() for split, found in measured.items()}
    chosen = {
        "monitor": epochs.monitor,
        "best_epoch": epochs.best_epoch,
        "chosen": name,
        "candidates": {
            candidate: {key: None if math.isnan(value) else value for key, value in row.items()}
            for candidate, row in selection.values.items()
        },
    }
    if gain is not None:
        chosen["gain"] = asdict(gain)
    seconds = time.monotonic() - started
    write_json(
        run.metrics,
        {**figures, **chosen, "calibration": calibrated.to_dict(), "seconds": round(seconds, 1)},
    )
    add_metrics(run.path, figures)
    draw_curves(run, epochs)
    metrics = {split: found.metrics for split, found in measured.items()}
    plot_metrics(metrics.get("test", metrics["val"]), run.picture(config.task))
    probabilities = val.probabilities(model)
    write_export(
        load_model(run.path),
        run.torchscript,
        Form("torchscript"),
        Gate(is_timed=False),
        root=setup.folder.root,
        samples=setup.folder.samples,
        console=setup.console,
        known=dict(zip(val.paths, probabilities, strict=True)),
    )
    worries = report_training(setup, model, measured, calibrated, name, seconds)
    return TrainResult(run.path, metrics, worries, gain)


def _answer_val(setup: Setup, selection: Selection) -> tuple[Model, Answers, str]:
    """Save the chosen weights and measure them; the probe's, where they are no better.

    Returns:
        The model, its answers on validation, and the name of what was chosen.
    """
    model = _save(setup, selection.state)
    val = _answer(setup, model, "val")
    probe = probe_state(setup.run)
    if probe is None or selection.name == PROBE:
        return model, val, selection.name
    if _holds(setup.config, metrics_of(model, val), selection):
        return model, val, selection.name
    setup.console.print("Measured in float32, that is no better than the probe, which is kept.")
    model = _save(setup, probe)
    return model, _answer(setup, model, "val"), PROBE


def _save(setup: Setup, state: State) -> Model:
    config = setup.config
    setup.classifier.load_state_dict(state)
    save_bundle(
        setup.run.path,
        classifier=setup.classifier,
        task=config.task,
        preprocess=setup.preprocess,
        backbone_name=config.model.backbone,
        head_name=config.head.name,
        head_arguments=head_arguments(config),
        class_names=setup.folder.class_names,
        max_megapixels=config.dataset.max_megapixels,
        versions=versions(),
        command=command_line(),
    )
    return load_model(setup.run.path)


def _answer(setup: Setup, model: Model, split: str) -> Answers:
    return answer_images(
        model,
        setup.folder.root,
        setup.folder.of_split(split),
        batch_size=forward_batch_size(model.device),
        workers=choose_workers(setup.config.dataset.workers),
        console=setup.console,
    )


def _measure(
    setup: Setup,
    model: Model,
    answers: Answers,
    split: str,
    points: Sequence[Mapping[str, Any]] | None,
) -> Measured:
    write_predictions(setup.run.predictions(split), model, answers, answers.samples)
    config = setup.config
    return measure_answers(model, answers, config.evidence, seed=config.seed, known_points=points)


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
    if result.worries:
        console.print("\n[bold]To worry about:")
        for worry in result.worries:
            console.print(f"  • {worry.title}. {worry.text}", markup=False, soft_wrap=True)
    has_report = directory.report.is_file()
    lines = [
        "",
        f"Done in {seconds:.0f} s. Everything is in {directory.path}:",
        *(["  report.html                     the page to read"] if has_report else []),
        "  model.json, model.safetensors   the model      model.ts   TorchScript",
        "  metrics.json, metrics.csv       the figures    curves.png, contact_sheet.png, "
        f"{directory.picture(task).name}",
        "Next:",
        f"  {typed('predict', run=directory.path, input='IMAGES', output='labels.csv')}",
    ]
    if result.gain is not None:
        lines.append(str(result.gain))
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
