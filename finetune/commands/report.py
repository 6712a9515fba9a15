"""``report.html``: everything that is known about a model, put together for one page."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from finetune.commands.evidence import Calibrated, Measured
from finetune.commands.galleries import Galleries, make_galleries
from finetune.commands.label_issues import LabelIssues
from finetune.commands.report_figures import (
    abstention,
    calibration_text,
    class_rows,
    curves,
    headline_row,
    metric_rows,
    metrics_text,
    operating_rows,
    reliability,
    sets_text,
)
from finetune.commands.report_training import (
    decisions,
    deploy,
    facts,
    read_epochs,
    read_findings,
    reproduce,
)
from finetune.commands.training_images import TrainingImages
from finetune.config import Task
from finetune.data.discover import Sample
from finetune.evaluation.reliability import expected_calibration_error
from finetune.evaluation.report.content import Content, MetricRow
from finetune.evaluation.report.content import Worry as WrittenWorry
from finetune.evaluation.report.page import write_report
from finetune.evaluation.report.wording import figure
from finetune.evaluation.worries import Facts, Scored, Trouble, Worry, find_worries
from finetune.exports.bundle import Model
from finetune.models.answers import as_hot, confidence, decide
from finetune.run import RunDirectory

_SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "sensitivity", "specificity")


@dataclass(frozen=True)
class Story:
    """What a report is made of.

    Attributes:
        run: directory of the training.
        record: its ``run.json``.
        model: the bundle's, calibrated.
        measured: by split; the report is about the last one.
        title: of the page.
        dataset: name of the images.
        monitor: metric that the training was chosen by, as in ``dataset.monitor``.
        samples: all images of the training by split; empty where the report is about others.
        calibrated: what the validation images taught; None where that is not at hand.
        issues: labels that are probably wrong; None where nobody looked.
        training: finds training images that look alike; None where unknown.
        best_epoch: of the training; None for a report on other images.
        is_stopped: the training ended before its last epoch.
        seconds: that the training took; None where unknown.
        pictures: images of each gallery.
    """

    run: RunDirectory
    record: Mapping[str, Any]
    model: Model
    measured: Mapping[str, Measured]
    title: str
    dataset: str
    monitor: str
    samples: Mapping[str, tuple[Sample, ...]]
    calibrated: Calibrated | None = None
    issues: LabelIssues | None = None
    training: TrainingImages | None = None
    best_epoch: int | None = None
    is_stopped: bool = False
    seconds: float | None = None
    pictures: int = 12

    @property
    def split(self) -> str:
        """What the report is about."""
        return list(self.measured)[-1]

    @property
    def shown(self) -> Measured:
        """The answers on it."""
        return self.measured[self.split]


def headline_key(task: Task, monitor: str) -> str:
    """Choose the metric at the top: the monitored one, if it is a share; else the usual one."""
    if task == "multilabel":
        return "mean_average_precision" if monitor in ("loss", "accuracy") else monitor
    return monitor if monitor in (*_SHARES, "auroc", "mean_average_precision") else "accuracy"


def worries_of(story: Story) -> tuple[Worry, ...]:
    """Find the most important things to worry about."""
    found, task = story.shown, story.model.description.task
    key = headline_key(task, story.monitor)
    key = key if hasattr(found.metrics, key) else headline_key(task, "accuracy")
    row = headline_row(story.measured, key)
    here = row.values[story.split]
    sure = confidence(found.probabilities, task)
    given = decide(found.probabilities, task)
    is_wrong = (given != as_hot(found.answers.targets, given.shape[1])).any(1)
    is_training = bool(story.samples)
    epochs = read_epochs(story.run) if is_training else ()
    last = max((int(epoch["epoch"] or 0) for epoch in epochs), default=0)
    issues = story.issues
    chosen = None if story.calibrated is None else story.calibrated.abstention
    return find_worries(
        Facts(
            metric=row.name,
            value=here.value,
            low=here.low,
            high=here.high,
            images=found.metrics.n,
            split=story.split,
            val_value=row.values["val"].value if story.split != "val" and is_training else None,
            chose_on_split=is_training and story.split == "val",
            classes=[Scored(one.name, one.support, one.recall) for one in found.metrics.per_class],
            mistakes=sure[is_wrong].tolist(),
            calibration_error=expected_calibration_error(
                found.probabilities, found.answers.targets, task
            ),
            threshold_error=(
                (found.answered.error, chosen.error)
                if found.answered is not None
                and chosen is not None
                and found.answered.error is not None
                and chosen.error is not None
                else None
            ),
            sets_coverage=(
                (found.sets.coverage, story.model.description.sets.coverage)
                if found.sets is not None and story.model.description.sets is not None
                else None
            ),
            label_issues=(
                (len(issues.rows), sum(issues.images.values())) if issues is not None else None
            ),
            findings=(
                [
                    Trouble(f.name.replace(" ", "_"), f.severity == "error", f.message, f.remedy)
                    for f in read_findings(story.run)[1]
                    if f.severity != "note"
                ]
                if is_training
                else []
            ),
            is_best_last=(
                last > 1 and story.best_epoch == last and not story.is_stopped and is_training
            ),
            left_out=len(found.answers.left_out),
        )
    )


def write_story(story: Story, path: Path, worries: tuple[Worry, ...]) -> None:
    """Write the page, whole or not at all."""
    galleries = make_galleries(
        story.model,
        story.shown,
        count=story.pictures,
        training=story.training,
        issues=story.issues,
    )
    write_report(_content(story, galleries, worries), path)


def _content(story: Story, galleries: Galleries, worries: tuple[Worry, ...]) -> Content:
    found, model, split = story.shown, story.model, story.split
    metrics = found.metrics
    key = headline_key(model.description.task, story.monitor)
    key = key if hasattr(metrics, key) else headline_key(model.description.task, "accuracy")
    headline = headline_row(story.measured, key)
    roc, precision_recall = curves(model, found)
    line, point, abstention_text = abstention(model, found, story.calibrated)
    is_training = bool(story.samples)
    audit_text, findings = read_findings(story.run) if is_training else ("", ())
    names = tuple(model.class_names)
    points = operating_rows(found.operating_points)
    return Content(
        title=story.title,
        summary=_summary(story),
        split=split,
        headline=headline,
        headline_text=_headline_text(headline, split, metrics.n),
        worries=tuple(WrittenWorry(one.title, one.text, one.remedy) for one in worries),
        class_names=names,
        counts=_counts(story, names),
        metrics=metric_rows(story.measured),
        metrics_text=metrics_text(metrics, found.intervals),
        per_class=class_rows(found),
        split_text=_split_text(story),
        audit_text=audit_text,
        findings=findings,
        epochs=read_epochs(story.run) if is_training else (),
        monitor=f"val_{story.monitor}",
        best_epoch=story.best_epoch or 0,
        confusion=getattr(metrics, "confusion_matrix", ()),
        cells=galleries.cells,
        roc=roc,
        precision_recall=precision_recall,
        operating_points=points,
        operating_text=_operating_text(story) if points else "",
        reliability=reliability(model, found),
        calibration_text=calibration_text(story.calibrated, model.description.temperature, split),
        risk_coverage=line,
        abstain_at=point,
        abstention_text=abstention_text,
        sets_text=sets_text(model, found, story.calibrated),
        galleries=galleries.galleries,
        heat_text=galleries.heat_text,
        decisions=decisions(story.record),
        facts=facts(story.record, model, story.seconds),
        reproduce=reproduce(story.run, story.record),
        deploy=deploy(story.run),
    )


def _summary(story: Story) -> str:
    description = story.model.description
    trained = len(story.samples.get("train", ()))
    images = f" on {trained:,} images" if trained else ""
    chosen = "" if story.best_epoch is None else f" Epoch {story.best_epoch} was the best."
    if story.best_epoch == 0:
        chosen = " The probe, a linear classifier on the pretrained features, was the best."
    return (
        f"A {description.backbone.name} with a {description.head.name} head, fine-tuned{images} of "
        f"{story.dataset} to tell {len(story.model.class_names)} "
        f"{'classes apart' if description.task == 'multiclass' else 'labels'}.{chosen} "
        f"Written on {date.today().isoformat()}."
    )


def _headline_text(row: MetricRow, split: str, images: int) -> str:
    value, where = row.values[split], f"measured on {images:,} images of {split}"
    if value.value is None:
        return f"The {row.name} is undefined, {where}."
    text = f"The {row.name} is {figure(value.value, row.is_share)}, {where}."
    if value.low is None or value.high is None:
        return text
    low, high = (figure(end, row.is_share) for end in (value.low, value.high))
    return (
        f"{text} With 95 % confidence, images of the same kind would give between {low} and {high}."
    )


def _counts(story: Story, names: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    splits = story.samples or {story.split: story.shown.answers.samples}
    return {
        split: tuple(sum(name in sample.labels for sample in samples) for name in names)
        for split, samples in splits.items()
    }


def _split_text(story: Story) -> str:
    if not story.samples:
        return f"None of these images belongs to the training: they come from {story.dataset}."
    groups = {s.group for samples in story.samples.values() for s in samples if s.group is not None}
    parts = [f"{len(samples):,} for {split}" for split, samples in story.samples.items()]
    text = f"The images were divided: {', '.join(parts)}; split.csv says which is where."
    if groups:
        return f"{text} {len(groups):,} groups stay whole, on one side each."
    return f"{text} It is not known which images belong together (such as those of one person)."


def _operating_text(story: Story) -> str:
    where = (
        "The thresholds were chosen on these images, so that the figures are a little too good."
        if story.split == "val"
        else "The thresholds were chosen on validation; the figures are of these images."
    )
    positive = getattr(story.shown.metrics, "positive_class", None)
    return (
        f'From a probability of "{positive}" of at least the threshold on, "{positive}" is the '
        f"answer. {where} Use one with predict threshold=NUMBER."
    )
