"""What a report shows, as plain values; how it looks is the page's.

Pictures are JPEG files as bytes. Texts are anybody's, and escaped by the page.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Picture = bytes
"""A JPEG file."""


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its 95 % interval; ``None`` where undefined, or where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric.

    Attributes:
        name: as in the field, such as ``balanced accuracy``.
        note: what it says, in a sentence.
        is_share: shown as a percentage.
        values: by split, in the order of the columns.
    """

    name: str
    note: str
    is_share: bool
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class's figures on the split that the report is about."""

    name: str
    support: int
    predicted: int
    precision: Value
    recall: Value
    f1: Value
    auroc: Value
    average_precision: Value


@dataclass(frozen=True, slots=True)
class Worry:
    """Something to worry about: a title, why, and what to do; whole sentences."""

    title: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What the audit found: its name, ``error``, ``warning`` or ``note``, and whose files."""

    name: str
    severity: str
    count: int
    message: str
    remedy: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart; ``x`` and ``y`` are of one length, ``nan`` leaves a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OperatingRow:
    """A threshold for the positive of two classes, and what it gives; ``None``: undefined."""

    rule: str
    threshold: float
    sensitivity: Value
    specificity: Value
    positive_predictive_value: Value
    negative_predictive_value: Value


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose confidence lies in a bin: mean confidence, share right, how many."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image that looks alike to the network; similarity is a cosine."""

    path: str
    label: str
    similarity: float
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class Case:
    """One image.

    Attributes:
        path: as in the split.
        truth: its label; labels are joined by ``|``.
        given: what the model says.
        probability: of that.
        picture: what the network saw; None where it cannot be shown.
        heat: the same with the places that speak for ``given`` in colour; None without a map.
        note: a sentence of its own, perhaps empty.
        neighbours: of the training images, the nearest first.
    """

    path: str
    truth: str
    given: str
    probability: float
    picture: Picture | None = None
    heat: Picture | None = None
    note: str = ""
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some images under a title, with a sentence on what they are and why one should look."""

    title: str
    text: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """A report. A part that is empty is left out of the page.

    Attributes:
        title: of the page.
        summary: what was trained on what, in one or two sentences.
        split: that the headline, the classes, the curves and the galleries are about.
        headline: the main metric; its value is that of ``split``.
        headline_text: the same in a sentence, with its interval and number of images.
        worries: the three most important, worst first; fewer where there is less to worry about.
        class_names: in the order of the outputs.
        counts: images of each class, by split.
        split_text: how the images were divided, in a sentence.
        audit_text: how many images were checked for what, in a sentence.
        findings: of the audit.
        epochs: rows of ``metrics.csv``; ``epoch`` 0 is the probe.
        monitor: the column that chose the best epoch.
        best_epoch: its number.
        metrics: every metric, by split.
        metrics_text: how the intervals were made, and what is undefined.
        per_class: one row per class.
        confusion: images as ``[true][predicted]``; empty with several labels to an image.
        cells: some images of a cell ``(true, predicted)`` of the confusion matrix.
        roc: false positive rate and sensitivity; one series per class, or of the positive of two.
        precision_recall: recall and precision, likewise.
        operating_points: of two classes.
        operating_text: where they were chosen.
        reliability: bins by name: ``before`` and ``after`` the temperature.
        calibration_text: what was fitted, and what it brought on other images.
        risk_coverage: share answered and error among these, by the confidence asked.
        abstain_at: the chosen point (share answered, error); None for none.
        abstention_text: what the threshold is and brings.
        sets_text: how large the prediction sets are, how often they hold the true class, and
            whether one may rely on it.
        galleries: mistakes, doubts, probable label errors, groups of failures.
        heat_text: how the heat maps were made, or why there are none.
        decisions: setting and its value with the reason, in order.
        facts: hardware, time, versions: name and value.
        reproduce: commands that repeat the training.
        deploy: title and command or code, one block each.
    """

    title: str
    summary: str
    split: str
    headline: MetricRow
    headline_text: str
    worries: tuple[Worry, ...]
    class_names: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    metrics: tuple[MetricRow, ...]
    metrics_text: str
    per_class: tuple[ClassRow, ...]
    split_text: str = ""
    audit_text: str = ""
    findings: tuple[Finding, ...] = ()
    epochs: tuple[Mapping[str, float | None], ...] = ()
    monitor: str = ""
    best_epoch: int = 0
    confusion: tuple[tuple[int, ...], ...] = ()
    cells: Mapping[tuple[int, int], tuple[Case, ...]] = field(default_factory=dict)
    roc: tuple[Series, ...] = ()
    precision_recall: tuple[Series, ...] = ()
    operating_points: tuple[OperatingRow, ...] = ()
    operating_text: str = ""
    reliability: Mapping[str, tuple[Bin, ...]] = field(default_factory=dict)
    calibration_text: str = ""
    risk_coverage: Series | None = None
    abstain_at: tuple[float, float] | None = None
    abstention_text: str = ""
    sets_text: str = ""
    galleries: tuple[Gallery, ...] = ()
    heat_text: str = ""
    decisions: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    reproduce: tuple[str, ...] = ()
    deploy: tuple[tuple[str, str], ...] = ()
