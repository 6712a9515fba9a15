"""The figures of a report: metrics, classes, curves, calibration, abstention, sets.

Shapes: ``N`` images, ``C`` classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import binomtest
from torch import Tensor

from finetune.commands.evidence import Calibrated, Measured
from finetune.commands.measure import AnyMetrics, percent
from finetune.evaluation.abstention import risk_coverage
from finetune.evaluation.conformal import expected_range, is_reliable
from finetune.evaluation.curves import precision_recall_points, roc_points
from finetune.evaluation.intervals import Interval, Intervals
from finetune.evaluation.multilabel import MultilabelMetrics
from finetune.evaluation.operating_points import OperatingPoint
from finetune.evaluation.reliability import reliability_bins
from finetune.evaluation.report.content import (
    Bin,
    ClassRow,
    MetricRow,
    OperatingRow,
    Series,
    Value,
)
from finetune.exports.bundle import Model
from finetune.models.answers import as_hot, confidence, decide, to_probabilities

MAX_CURVES = 50
"""Classes whose curves are drawn: of more, those with the smallest area."""
_UNLIKELY = 0.01

_NOTES: Mapping[str, tuple[str, str, bool]] = {
    "accuracy": ("accuracy", "Share of images whose answer is right.", True),
    "exact_match": ("all labels right", "Share of images with every label right.", True),
    "top5_accuracy": ("top-5 accuracy", "The true class is among the five likeliest.", True),
    "balanced_accuracy": (
        "balanced accuracy",
        "Mean share found over the classes: a large class counts no more than a small one.",
        True,
    ),
    "sensitivity": ("sensitivity", "Share of the positive images that are found.", True),
    "specificity": ("specificity", "Share of the other images that are left alone.", True),
    "macro_precision": ("macro precision", "How often an answer is right, mean of classes.", True),
    "macro_recall": ("macro recall", "Share found, mean of the classes.", True),
    "macro_f1": ("macro F1", "Harmonic mean of precision and recall, mean of classes.", True),
    "micro_f1": ("micro F1", "F1 of all pairs of an image and a label.", True),
    "hamming_accuracy": ("Hamming accuracy", "Share of right answers among all pairs.", True),
    "auroc": (
        "AUROC",
        "Chance that an image of the class gets a higher probability than one that is not.",
        False,
    ),
    "mean_average_precision": (
        "mean average precision",
        "Precision over all thresholds, mean of the classes.",
        False,
    ),
    "matthews_correlation": ("Matthews correlation", "−1 to 1; 0 is chance.", False),
    "cohen_kappa": ("Cohen's kappa", "Agreement beyond chance; 0 is chance.", False),
    "log_loss": ("log loss", "0 is perfect; punishes wrong certainty. In nats.", False),
    "brier_score": ("Brier score", "Squared error of the probabilities; 0 is perfect.", False),
    "expected_calibration_error": (
        "expected calibration error",
        "How far the probabilities are from how often they are right, on average.",
        True,
    ),
}
_RULES = {
    "default": "the usual 0.5",
    "youden": "most sensitivity plus specificity (Youden)",
    "min_sensitivity": "keeps the sensitivity asked for",
    "min_specificity": "keeps the specificity asked for",
}


def headline_row(measured: Mapping[str, Measured], key: str) -> MetricRow:
    """Make the row of one metric, by split."""
    name, note, is_share = _NOTES[key]
    values = {
        split: _value(getattr(found.metrics, key), _overall(found.intervals, key))
        for split, found in measured.items()
    }
    return MetricRow(name, note, is_share, values)


def metric_rows(measured: Mapping[str, Measured]) -> tuple[MetricRow, ...]:
    """Make a row of each metric that the task has."""
    metrics = next(iter(measured.values())).metrics
    keys = [key for key in _NOTES if hasattr(metrics, key)]
    if isinstance(metrics, MultilabelMetrics):
        hidden = set[str]()
    else:
        is_binary = metrics.positive_class is not None
        hidden = set() if is_binary else {"sensitivity", "specificity"}
        hidden |= {"macro_recall"}  # the same as balanced accuracy
        hidden |= {"top5_accuracy"} if metrics.top5_accuracy is None else set()
    return tuple(headline_row(measured, key) for key in keys if key not in hidden)


def metrics_text(metrics: AnyMetrics, intervals: Intervals | None) -> str:
    """Say how the intervals were made, and what is undefined."""
    parts = []
    if intervals is not None:
        parts.append(
            f"95 % intervals, from {intervals.resamples:,} bootstrap resamples of "
            f"{intervals.units:,} independent units (images, or groups of images that belong "
            "together); exact ones where too few answers are right, or wrong, for that. "
            "docs/evidence.md says how each is made."
        )
    if isinstance(metrics, MultilabelMetrics):
        parts.append("A label is given from a probability of 0.5 on.")
    elif metrics.positive_class is not None:
        parts.append(f'Sensitivity, specificity and AUROC are about "{metrics.positive_class}".')
    if metrics.absent_classes:
        shown = ", ".join(metrics.absent_classes[:10])
        parts.append(f"No image here shows {shown}: what depends on it is undefined, not 0.")
    return " ".join(parts)


def class_rows(found: Measured) -> tuple[ClassRow, ...]:
    """Make a row of each class."""
    rows = []
    for index, row in enumerate(found.metrics.per_class):
        known = {} if found.intervals is None else found.intervals.per_class[index]
        rows.append(
            ClassRow(
                name=row.name,
                support=row.support,
                predicted=row.predicted,
                precision=_value(row.precision, known.get("precision")),
                recall=_value(row.recall, known.get("recall")),
                f1=_value(row.f1, known.get("f1")),
                auroc=_value(row.auroc, known.get("auroc")),
                average_precision=_value(row.average_precision, known.get("average_precision")),
            )
        )
    return tuple(rows)


def curves(model: Model, found: Measured) -> tuple[tuple[Series, ...], tuple[Series, ...]]:
    """Draw ROC and precision against recall: of the second of two classes, or of each."""
    names = model.class_names
    is_true = as_hot(found.answers.targets, len(names))
    if model.description.task == "multiclass" and len(names) == 2:
        chosen = [1]
    else:
        areas = [(row.auroc, index) for index, row in enumerate(found.metrics.per_class)]
        known = sorted((area, index) for area, index in areas if area is not None)
        chosen = sorted(index for _, index in known[:MAX_CURVES])
    roc: list[Series] = []
    precision_recall: list[Series] = []
    for index in chosen:
        scores, marks = found.probabilities[:, index], is_true[:, index]
        for lines, points in (
            (roc, roc_points(scores, marks)),
            (precision_recall, precision_recall_points(scores, marks)),
        ):
            if points is not None:
                lines.append(Series(names[index], *points))
    return tuple(roc), tuple(precision_recall)


def operating_rows(points: Sequence[OperatingPoint]) -> tuple[OperatingRow, ...]:
    """Make a row of each threshold for two classes, with exact intervals and all its rules."""
    rules: dict[float, list[str]] = {}
    for point in points:
        rules.setdefault(point.threshold, []).append(_RULES.get(point.rule, point.rule))
    first = {point.threshold: point for point in reversed(points)}
    return tuple(
        OperatingRow(
            rule="; ".join(names),
            threshold=threshold,
            sensitivity=_share(point.tp, point.tp + point.fn),
            specificity=_share(point.tn, point.tn + point.fp),
            positive_predictive_value=_share(point.tp, point.tp + point.fp),
            negative_predictive_value=_share(point.tn, point.tn + point.fn),
        )
        for threshold, names in rules.items()
        for point in (first[threshold],)
    )


def reliability(model: Model, found: Measured) -> Mapping[str, tuple[Bin, ...]]:
    """Bin the answers by their confidence, before and after the temperature."""
    task, temperature = model.description.task, model.description.temperature
    targets = found.answers.targets
    after = _bins(reliability_bins(found.probabilities, targets, task))
    if temperature == 1:
        return {"as it is": after}
    plain = to_probabilities(found.answers.logits, task)
    return {"before": _bins(reliability_bins(plain, targets, task)), "after": after}


def calibration_text(calibrated: Calibrated | None, temperature: float, split: str) -> str:
    """Say what was fitted, and what it brought on other images."""
    calibration = None if calibrated is None else calibrated.calibration
    if calibration is None:
        return (
            f"The model's temperature is {temperature:.3g}."
            if temperature != 1
            else "No temperature was fitted: the probabilities are the network's own."
        )
    text = calibration.reason
    if calibration.ece_before is not None and calibration.ece_after is not None:
        text += (
            f" On validation images that it was not fitted to (cross-fitted, "
            f"{calibration.images:,} images), the expected calibration error went from "
            f"{percent(calibration.ece_before)} to {percent(calibration.ece_after)}, the log loss "
            f"from {calibration.log_loss_before:.4f} to {calibration.log_loss_after:.4f}."
        )
    return f"{text} The diagram shows {split}."


def abstention(
    model: Model, found: Measured, calibrated: Calibrated | None
) -> tuple[Series, tuple[float, float] | None, str]:
    """Draw the error against the share answered; the chosen point, and what it says."""
    task = model.description.task
    sure = confidence(found.probabilities, task)
    is_right = _are_right(model, found)
    curve = risk_coverage(sure, is_right)
    line = Series("error", *_thinned(curve.coverage.tolist(), curve.risk.tolist()))
    answered, below = found.answered, model.description.abstain_below
    if answered is None or below is None:
        why = "" if calibrated is None else calibrated.why_no_abstention
        return line, None, why or "The model has no threshold for abstention."
    text = (
        f"Answers with a probability below {below:.3f} are marked as abstained by predict and "
        f"serve: {percent(1 - answered.coverage)} of these images."
    )
    if answered.error is None:
        return line, None, f"{text} None is left here."
    text += (
        f" Of the answers that are left, {percent(answered.error)} are wrong, instead of "
        f"{percent(answered.error_without)}."
    )
    chosen = None if calibrated is None else calibrated.abstention
    if chosen is not None and chosen.error is not None:
        text += (
            f" The threshold was chosen on {chosen.images:,} validation images, where "
            f"{percent(chosen.error)} are left wrong."
        )
    return line, (answered.coverage, answered.error), text


def sets_text(model: Model, found: Measured, calibrated: Calibrated | None) -> str:
    """Say how large the sets are, how often right, and whether one may rely on that."""
    rule, report = model.description.sets, found.sets
    if rule is None or report is None:
        if model.description.task == "multilabel":
            return "Prediction sets are for one class per image."
        return "No prediction sets: too few validation images for the coverage, or none asked."
    parts = [
        f"Sets were made to hold the true class of {percent(rule.coverage)} of the images; here "
        f"they hold it in {percent(report.coverage)}. A set has {report.mean_size:.2f} classes on "
        f"average, and {percent(report.share_single)} have a single one."
    ]
    if report.is_above_by_accuracy:
        parts.append(
            "The likeliest class alone is right at least as often as was asked, so sets of one "
            "class do: ask for more (evidence.coverage=0.99) to make them say something."
        )
    if calibrated is not None and calibrated.sets_coverage is not None:
        parts.append(
            "On validation images that they were not made from, it was "
            f"{percent(calibrated.sets_coverage)}."
        )
    low, high = expected_range(rule.images, rule.coverage)
    hits = round(report.coverage * found.metrics.n)
    if binomtest(hits, found.metrics.n, low or 1e-9, alternative="less").pvalue < _UNLIKELY:
        parts.append(
            "That is less than chance explains: these images are of another kind than those of "
            "validation, and for them the sets promise nothing."
        )
    elif is_reliable(rule.images, rule.coverage):
        parts.append(f"They were made from {rule.images:,} images, enough to rely on.")
    else:
        parts.append(
            f"They were made from {rule.images:,} images, which are too few to rely on: on new "
            f"images of the same kind the coverage may be anything from {percent(low)} to "
            f"{percent(high)}."
        )
    return " ".join(parts)


def _are_right(model: Model, found: Measured) -> Tensor:
    given = decide(found.probabilities, model.description.task)
    return (given == as_hot(found.answers.targets, given.shape[1])).all(1)


def _overall(intervals: Intervals | None, key: str) -> Interval | None:
    return None if intervals is None else intervals.overall.get(key)


def _value(value: float | None, interval: Interval | None) -> Value:
    if value is None or interval is None:
        return Value(value)
    return Value(value, interval.low, interval.high)


def _share(part: int, whole: int) -> Value:
    """Give a proportion with its exact interval (Clopper and Pearson 1934)."""
    if not whole:
        return Value(None)
    ends = binomtest(part, whole).proportion_ci(0.95, method="exact")
    return Value(part / whole, float(ends.low), float(ends.high))


def _bins(found: Sequence[Any]) -> tuple[Bin, ...]:
    return tuple(Bin(row.confidence, row.accuracy, row.count) for row in found)


def _thinned(
    x: Sequence[float], y: Sequence[float], count: int = 200
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    places = range(len(x))
    if len(x) > count:
        places = range(0, len(x) - 1, -(-len(x) // count))
    chosen = [*places, len(x) - 1] if len(x) > count else list(places)
    return tuple(x[i] for i in chosen), tuple(y[i] for i in chosen)
