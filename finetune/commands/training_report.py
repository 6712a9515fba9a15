"""What a training says about itself when it is done: the page, the model card, doubtful labels."""

from collections.abc import Mapping

from finetune.commands.candidates import PROBE
from finetune.commands.components import monitor_key
from finetune.commands.dataset import data_name
from finetune.commands.evidence import Calibrated, Measured
from finetune.commands.label_issues import LabelIssues, find_issues, read_issues, write_issues
from finetune.commands.report import Story, worries_of, write_story
from finetune.commands.setup import Setup
from finetune.commands.training_images import find_training_images
from finetune.config import settled
from finetune.evaluation.worries import Worry
from finetune.exports.bundle import Model
from finetune.exports.card import model_card
from finetune.exports.description import read_description
from finetune.exports.interface import JSON_NAME
from finetune.run import read_record, write_text


def report_training(
    setup: Setup,
    model: Model,
    measured: Mapping[str, Measured],
    calibrated: Calibrated,
    chosen: str,
    seconds: float,
) -> tuple[Worry, ...]:
    """Write the page, the model card and the list of labels that look wrong.

    Args:
        setup: of the training.
        model: the bundle's, calibrated.
        measured: by split, validation first.
        calibrated: what validation taught.
        chosen: name of the weights.
        seconds: that the training took.

    Returns:
        What there is to worry about, worst first.
    """
    config, run, epochs = setup.config, setup.run, setup.epochs
    dataset = data_name(config.dataset)
    splits = ("train", *measured)
    story = Story(
        run=run,
        record=read_record(run),
        model=model,
        measured=measured,
        title=f"{dataset}: {config.model.backbone}",
        dataset=dataset,
        monitor=monitor_key(config).removeprefix("val_"),
        samples={split: setup.folder.of_split(split) for split in splits},
        calibrated=calibrated,
        issues=_label_issues(setup, measured["val"]) if config.evidence.report else None,
        training=find_training_images(setup) if config.evidence.pictures else None,
        best_epoch=0 if chosen == PROBE else epochs.best_epoch,
        is_stopped=len(epochs.rows) - 1 < settled(config.trainer.epochs),
        seconds=seconds,
        pictures=config.evidence.pictures,
    )
    worries = worries_of(story)
    card = model_card(
        read_description(run.path / JSON_NAME),
        name=story.title,
        dataset=dataset,
        worries=[(worry.title, worry.text) for worry in worries],
    )
    write_text(run.card, card)
    if config.evidence.report:
        with setup.console.status("Writing report.html"):
            write_story(story, run.report, worries)
    return worries


def _label_issues(setup: Setup, val: Measured) -> LabelIssues:
    """Add the validation images whose labels look wrong to those of the probe, and write all."""
    found = find_issues(
        val.answers.samples,
        val.answers.targets,
        val.probabilities,
        setup.folder.class_names,
        task=setup.config.task,
        split="val",
    )
    known = read_issues(setup.run.label_issues, {"train": len(setup.folder.of_split("train"))})
    issues = found if known is None else known + found
    write_issues(setup.run.label_issues, issues)
    return issues
