"""``finetune compare``: several runs beside each other, on the same images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import rich
import torch
from rich.console import Console

from finetune.commands.comparison import print_comparison, write_comparison
from finetune.commands.entrants import Entrant, find_runs, read_entrants, short_names
from finetune.commands.measure import compute_metrics
from finetune.commands.ranking import (
    Headline,
    choose_headline,
    compare_pair,
    correct,
    measures_of,
)
from finetune.commands.trainings import Trainings, check_trainings, train_each
from finetune.commands.verdict import explain, in_words, summarise, warn
from finetune.config import CompareConfig
from finetune.errors import ConfigError
from finetune.evaluation.intervals import bootstrap_intervals
from finetune.evaluation.report.comparison import Comparison, Contender, Measure
from finetune.evaluation.report.content import Value
from finetune.exports.bundle import WEIGHTS_NAME, Model, load_model
from finetune.exports.interface import JSON_NAME
from finetune.models.cost import count_flops, count_parameters, median_seconds
from finetune.run import RunDirectory, typed

MOST_MEGABYTES = 4000
"""Of models that are held at once."""


def run(config: CompareConfig, as_yaml: str, trainings: Trainings | None = None) -> Comparison:
    """Compare runs, or train several backbones and compare these.

    Args:
        config: validated settings.
        as_yaml: not used; a comparison has no run directory.
        trainings: what is trained first, by backbone.

    Raises:
        FinetuneError: what is wrong, for the user; or not one backbone could be trained.
    """
    del as_yaml
    console = rich.get_console()
    _check_output(config.output)
    failures: Mapping[str, str] = {}
    if trainings:
        checked = check_trainings(trainings)
        finished, failures = train_each(checked, console, debug=config.debug)
        runs, names = list(finished.values()), list(finished)
    else:
        runs = _named_runs(config.runs, console)
        names = short_names([run.path for run in runs])
    comparison = _compare(runs, names, failures, config, console)
    write_comparison(config.output, comparison)
    print_comparison(comparison, config.output, console)
    return comparison


def _check_output(output: Path) -> None:
    """Find out whether the folder can be written, before anything takes time."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output: {output} cannot be a folder: {error.strerror}. Choose another: output=FOLDER."
        ) from None


def _named_runs(paths: Sequence[Path] | None, console: Console) -> list[RunDirectory]:
    runs, skipped = find_runs(paths or ())
    for line in skipped:
        console.print(f"Left out: {line}", style="yellow", markup=False, soft_wrap=True)
    if len(runs) < 2:
        raise ConfigError(
            f"runs: got {len(runs)} finished {'run' if len(runs) == 1 else 'runs'}, expected at "
            f"least two: {typed('compare')} runs/DATASET/TIME runs/DATASET/TIME, or "
            "backbones=[resnet18,resnet50] to train some."
        )
    return runs


def _compare(
    runs: Sequence[RunDirectory],
    names: Sequence[str],
    failures: Mapping[str, str],
    config: CompareConfig,
    console: Console,
) -> Comparison:
    entrants, split = read_entrants(runs, names, config.split)
    headline = choose_headline(entrants)
    task = entrants[0].description.task
    measures = measures_of(task, headline)
    with console.status("Measuring"):
        found = [_measure(entrant, measures, config) for entrant in entrants]
        if config.latency:
            found = _timed(found)
    order = _best_first(found, headline)
    contenders, entrants = [found[i] for i in order], [entrants[i] for i in order]
    best = entrants[0]
    tested = [compare_pair(best, other, headline, config.resamples) for other in entrants[1:]]
    count = sum(pair.p is not None for pair in tested)
    pairs = [
        replace(pair, text=in_words(pair, headline.measure, split, comparisons=count))
        for pair in correct(tested)
    ]
    standings = ["best", *(pair.standing for pair in pairs)]
    contenders = [
        replace(contender, standing=standing)
        for contender, standing in zip(contenders, standings, strict=True)
    ]
    return Comparison(
        title=_title(contenders),
        summary=summarise(contenders, headline, split),
        split=split,
        headline=headline.key,
        measures=measures,
        contenders=tuple(contenders),
        pairs=tuple(pairs),
        failures=tuple(failures.items()),
        warnings=warn(entrants, pairs, headline, split),
        method=explain(
            headline,
            pairs,
            resamples=config.resamples,
            threads=torch.get_num_threads(),
            is_timed=config.latency,
        ),
        price_per_hour=config.price_per_hour,
    )


def _measure(entrant: Entrant, measures: Sequence[Measure], config: CompareConfig) -> Contender:
    """Gather one run's figures, and measure what its network costs."""
    model = load_model(entrant.run.path)
    size = model.description.backbone.image_size_px
    seconds = entrant.figures.get("seconds")
    price = config.price_per_hour
    files = (entrant.run.path / name for name in (JSON_NAME, WEIGHTS_NAME))
    return Contender(
        name=entrant.name,
        run=str(entrant.run.path),
        backbone=model.description.backbone.name,
        image_size_px=size,
        dataset=entrant.root.name,
        images=len(entrant.samples),
        metrics=_metrics(entrant, measures, config.resamples),
        parameters=count_parameters(model.classifier),
        flops=count_flops(model.classifier, size),
        latency_ms=None,
        megabytes=sum(file.stat().st_size for file in files) / 1e6,
        seconds=seconds,
        cost=None if seconds is None or price is None else seconds / 3600 * price,
        standing="unknown",
    )


def _timed(contenders: Sequence[Contender]) -> list[Contender]:
    """Measure how long one image takes: all models by turns, or each alone where they are large."""
    together = sum(contender.megabytes for contender in contenders) < MOST_MEGABYTES
    timed = []
    for group in [contenders] if together else [[contender] for contender in contenders]:
        answers = [_answer(load_model(contender.run)) for contender in group]
        for contender, seconds in zip(group, median_seconds(answers), strict=True):
            timed.append(replace(contender, latency_ms=1000 * seconds))
    return timed


def _answer(model: Model) -> Callable[[], object]:
    size = model.description.backbone.image_size_px
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255
    return lambda: model.probabilities(image)


def _metrics(entrant: Entrant, measures: Sequence[Measure], resamples: int) -> dict[str, Value]:
    """Measure the answers, each figure with its 95 % interval."""
    task, class_names = entrant.description.task, entrant.description.class_names
    figures = compute_metrics(entrant.probabilities, entrant.targets, class_names, task=task)
    intervals = bootstrap_intervals(
        entrant.probabilities,
        entrant.targets,
        class_names,
        task=task,
        groups=[sample.group for sample in entrant.samples],
        resamples=resamples,
    ).overall
    values = {}
    for measure in measures:
        value: float | None = getattr(figures, measure.key)
        interval = None if value is None else intervals[measure.key]
        ends = (None, None) if interval is None else (interval.low, interval.high)
        values[measure.key] = Value(value, *ends)
    return values


def _best_first(contenders: Sequence[Contender], headline: Headline) -> list[int]:
    """Order by the headline metric; of equal ones, by fewer operations, then by log loss."""

    def key(index: int) -> tuple[float, int, float]:
        value = contenders[index].metrics[headline.key].value
        worth = -math.inf if value is None else headline.sign * value
        log_loss = contenders[index].metrics["log_loss"].value
        return -worth, contenders[index].flops, math.inf if log_loss is None else log_loss

    return sorted(range(len(contenders)), key=key)


def _title(contenders: Sequence[Contender]) -> str:
    datasets = sorted({contender.dataset for contender in contenders})
    return f"{len(contenders)} models on {' and '.join(datasets)}"
