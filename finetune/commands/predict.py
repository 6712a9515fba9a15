"""``finetune predict``: images in, one row per image out."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from finetune.commands.dataset import columns_of_run
from finetune.commands.predictor import (
    Answering,
    Work,
    check_sets,
    choose_abstain,
    choose_batch_size,
    choose_processes,
    open_answering,
    predict_paths,
    workers_of_each,
)
from finetune.config import PredictConfig
from finetune.errors import ConfigError
from finetune.exports.exported import is_exported
from finetune.prediction.columns import Columns
from finetune.prediction.features import FORMATS as FEATURE_FORMATS
from finetune.prediction.features import open_features
from finetune.prediction.inputs import MANIFEST_SUFFIXES, STANDARD_INPUT, Inputs, find_inputs
from finetune.prediction.outputs import check_format
from finetune.prediction.predict import Prediction
from finetune.prediction.resume import FORMATS as RESUMABLE
from finetune.prediction.resume import Done, PartialTable, check_settings
from finetune.prediction.writers import FORMATS, PredictionWriter, open_writer
from finetune.run import RunDirectory
from finetune.terminal import open_console


@dataclass
class Counts:
    """What was written so far."""

    rows: int
    errors: int
    abstained: int

    def add(self, prediction: Prediction) -> None:
        """Count a row."""
        self.rows += 1
        self.errors += prediction.error is not None
        self.abstained += prediction.abstained is True


def run(config: PredictConfig, as_yaml: str) -> Path | None:
    """Predict every image of ``input`` in order; one that cannot be read has its error as a row.

    Returns:
        The table, or None if it went to the terminal.

    Raises:
        FinetuneError: no input, no model, or an output that cannot be written.
    """
    del as_yaml
    output = _check_files(config)
    console = open_console(stderr=True)
    table = PartialTable(output) if output and output.suffix.lower() in RESUMABLE else None
    inputs = _find_inputs(config)
    answering = open_answering(
        config.run,
        trust=config.trust,
        augment=config.augment,
        features=config.output_features is not None,
    )
    began = _began(config, table)
    work = _plan(config, inputs, answering, began)
    settings = _settings(config, answering, work)
    if config.abstain == "auto" and work.abstain is None and answering.description.abstain_below:
        console.print(_NOT_MARKED, **_PLAIN)
    paths, done = iter(inputs.paths), Done()
    if began is not None and table is not None:
        check_settings(began, settings, part=table.part)
        done = table.find_done(paths, batch_size=work.batch_size)
        console.print(f"Going on after {done.rows} rows of {table.part}.", **_PLAIN)
    predictions = predict_paths(answering, work, paths)
    counts = Counts(done.rows, done.errors, done.abstained)
    class_names = answering.description.class_names
    columns = Columns(config.probabilities, config.top_k, work.abstain is not None, work.sets)
    if table is None:
        writer: AbstractContextManager[PredictionWriter]
        writer = open_writer(output, class_names, columns)
    else:
        writer = table.open(class_names, columns, settings=settings, done=done)
    start = time.monotonic()
    try:
        with closing(predictions):
            shown = _shown(predictions, inputs.count, done, console)
            _write(config, answering, writer, shown, counts)
    except BaseException:
        if table is not None:
            _say_how_to_go_on(table, counts, console)
        raise
    _summarise(config, work, counts, counts.rows - done.rows, time.monotonic() - start, console)
    return config.output


_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
_NOT_MARKED = (
    "No answer is marked as abstained: the model's own threshold was found with neither threshold "
    "nor augment. To mark some, use abstain=PROBABILITY."
)


def _check_files(config: PredictConfig) -> Path | None:
    """Refuse what cannot be, before a model is loaded; give the table's path, None for stdout."""
    if config.input is None:
        raise ConfigError("input: missing; give an image, a folder or a glob: input=PATH.")
    output = config.output if config.output and str(config.output) != "-" else None
    features = config.output_features
    suffix = check_format("output", output, FORMATS) if output else None
    if features is not None:
        check_format("output_features", features, FEATURE_FORMATS)
    files = {"input": config.input, "output": output, "output_features": features}
    known: dict[Path, str] = {}
    for key, path in files.items():
        if path is not None and (other := known.setdefault(path.resolve(), key)) != key:
            raise ConfigError(f"{key}: got {path}, which is {other} too; expected another file.")
    if not config.resume:
        return output
    if suffix not in RESUMABLE:
        raise ConfigError(
            f"resume: got output={config.output}, expected a file that ends in "
            f"{' or '.join(RESUMABLE)}: half a Parquet file cannot be read, and what is printed "
            "is gone."
        )
    if features is not None:
        raise ConfigError(
            "resume: does not go with output_features; write the features in a run of their own."
        )
    return output


def _began(config: PredictConfig, table: PartialTable | None) -> dict[str, Any] | None:
    """Say how a table began that goes on; None for one that begins.

    Raises:
        ConfigError: an interrupted one is there, and nobody said what to do with it.
    """
    if table is None or config.resume is False:
        return None
    if config.resume is None:
        if table.has_rows:
            raise ConfigError(
                f"output: {table.part} holds rows of a prediction that was interrupted. "
                "resume=true goes on from there, resume=false begins anew."
            )
        return None
    return table.settings()


def _find_inputs(config: PredictConfig) -> Inputs:
    # A path has no two slashes in a row, and so a URL has lost one.
    given = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", str(config.input))
    column = config.path_column or "path"
    is_manifest = Path(given).suffix.lower() in MANIFEST_SUFFIXES
    if config.path_column is None and is_manifest and not is_exported(config.run):
        directory = RunDirectory(config.run)
        if directory.record.is_file():
            column = columns_of_run(directory).path
    stream = sys.stdin.buffer if given == STANDARD_INPUT else None
    return find_inputs(given, path_column=column, stream=stream)


def _plan(
    config: PredictConfig, inputs: Inputs, answering: Answering, began: dict[str, Any] | None
) -> Work:
    """Settle what is ``auto``; a table that goes on keeps its batch size.

    Raises:
        ConfigError: prediction sets are asked of a model that has none.
    """
    if config.sets:
        check_sets(config.run, answering.description, config.augment)
    batch_size = config.batch_size
    if batch_size == "auto":
        known = (began or {}).get("batch_size")
        size = int(answering.description.preprocessing["image_size_px"])
        is_known = isinstance(known, int) and known > 0
        batch_size = int(known or 0) if is_known else choose_batch_size(config.run, size)
    batches = None if inputs.count is None else -(-inputs.count // batch_size)
    processes = choose_processes(config.run) if config.processes == "auto" else config.processes
    if batches is not None:
        processes = max(1, min(processes, batches))
    return Work(
        run=config.run,
        trust=config.trust,
        augment=config.augment,
        features=config.output_features is not None,
        threshold=config.threshold,
        abstain=choose_abstain(
            config.abstain,
            answering.description,
            threshold=config.threshold,
            augment=config.augment,
        ),
        sets=config.sets,
        batch_size=batch_size,
        workers=workers_of_each(config.workers, batches, processes),
        processes=processes,
    )


def _settings(config: PredictConfig, answering: Answering, work: Work) -> dict[str, Any]:
    """Name everything that a row depends on, apart from its image."""
    return {
        "model": answering.identity,
        "probabilities": config.probabilities,
        "top_k": config.top_k,
        "threshold": config.threshold,
        "abstain": work.abstain,
        "sets": config.sets,
        "augment": config.augment,
        "batch_size": work.batch_size,
    }


def _write(
    config: PredictConfig,
    answering: Answering,
    table: AbstractContextManager[PredictionWriter],
    predictions: Iterator[Prediction],
    counts: Counts,
) -> None:
    with ExitStack() as stack:
        writers: list[Any] = [stack.enter_context(table)]
        if config.output_features is not None:
            file = open_features(config.output_features, answering.num_features)
            writers.append(stack.enter_context(file))
        for prediction in predictions:
            for writer in writers:
                writer.write(prediction)
            counts.add(prediction)


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """Give the rate of late."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s")


def _shown(
    predictions: Iterator[Prediction], count: int | None, done: Done, console: Console
) -> Iterator[Prediction]:
    """Pass predictions on, and show on a terminal how far they are."""
    if not console.is_terminal:
        yield from predictions
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("Predicting", total=count, completed=done.rows)
        yield from progress.track(predictions, total=count, completed=done.rows, task_id=task)


def _say_how_to_go_on(table: PartialTable, counts: Counts, console: Console) -> None:
    if not table.is_ours:
        return
    if counts.rows == 0:
        table.discard()
    elif table.part.is_file():
        console.print(
            f"Stopped after {counts.rows} rows, which are in {table.part}. The same command with "
            "resume=true goes on from there.",
            **_PLAIN,
        )


def _summarise(
    config: PredictConfig,
    work: Work,
    counts: Counts,
    rows: int,
    seconds: float,
    console: Console,
) -> None:
    noun = "row" if counts.rows == 1 else "rows"
    where = f" to {config.output}" if config.output else ""
    parts = [f"{counts.rows} {noun}{where}, {rows / max(seconds, 1e-9):,.0f} images/s"]
    if work.abstain is not None:
        parts.append(f"{counts.abstained} abstained")
    if counts.errors:
        parts.append(f"{counts.errors} of them unreadable (see the column `error`)")
    if config.output_features is not None:
        parts.append(f"features to {config.output_features}")
    console.print(f"{', '.join(parts)}.", **_PLAIN)
