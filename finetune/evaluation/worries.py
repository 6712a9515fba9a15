"""What to worry about before a model is relied on: the most important things, in words.

Each rule looks at plain facts, and says nothing where there is nothing to say. Rules have a weight
in 0..1, so that the worst come first; the weights are a judgement, not a measurement.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ENOUGH_IMAGES = 20
"""Images of a class from which on its recall says something."""
WIDE = 0.10
"""An interval of the headline metric this wide, in 0..1, decides little."""
SURE = 0.9
"""A mistake is called sure from this probability on."""


class Scored(NamedTuple):
    """One class: its name, images, images right (recall in 0..1; None: undefined)."""

    name: str
    support: int
    recall: float | None


class Trouble(NamedTuple):
    """A finding of the audit: its name, whether it spoils the result, message and remedy."""

    name: str
    is_error: bool
    message: str
    remedy: str


@dataclass(frozen=True)
class Facts:
    """What the rules look at; what is unknown is None or empty, and starts no rule.

    Attributes:
        metric: name of the headline metric.
        value: its value on the images that the report is about, in 0..1.
        low: lower end of its 95 % interval.
        high: upper end.
        images: that it was measured on.
        split: which these are.
        val_value: the same metric on validation, where the report is about other images.
        chose_on_split: whether these images also chose the epoch and the thresholds.
        classes: one per class.
        mistakes: probabilities of wrong answers.
        calibration_error: ECE on these images, in 0..1.
        threshold_error: error left after abstention on these images, and the error that was
            promised on validation.
        sets_coverage: how often the prediction sets held the true class on these images, and what
            was asked.
        label_issues: training and validation images that may be mislabelled, and all of them.
        findings: of the audit, errors first.
        is_best_last: the last epoch was the best, and the training was not stopped.
        left_out: images that could not be read.
    """

    metric: str
    value: float | None
    images: int
    split: str
    low: float | None = None
    high: float | None = None
    val_value: float | None = None
    chose_on_split: bool = False
    classes: Sequence[Scored] = ()
    mistakes: Sequence[float] = ()
    calibration_error: float | None = None
    threshold_error: tuple[float, float] | None = None
    sets_coverage: tuple[float, float] | None = None
    label_issues: tuple[int, int] | None = None
    findings: Sequence[Trouble] = ()
    is_best_last: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class Worry:
    """A title, why, and what to do; ``weight`` in 0..1 orders them."""

    weight: float
    title: str
    text: str
    remedy: str


def find_worries(facts: Facts, *, count: int = 3) -> tuple[Worry, ...]:
    """Return the most important worries, worst first.

    Args:
        facts: about one model and the images that it was measured on.
        count: at most so many.
    """
    found = [worry for rule in _RULES for worry in rule(facts)]
    return tuple(sorted(found, key=lambda worry: -worry.weight)[:count])


def _falls_elsewhere(facts: Facts) -> Iterator[Worry]:
    if facts.val_value is None or facts.value is None or facts.high is None:
        return
    fall = facts.val_value - facts.value
    if fall > 0.02 and facts.high < facts.val_value:
        yield Worry(
            min(1.0, 0.75 + fall),
            f"Worse on {facts.split} than on validation",
            f"The {facts.metric} falls from {_percent(facts.val_value)} on validation to "
            f"{_percent(facts.value)} on {facts.split}, which is more than chance explains. "
            "These images differ from those that the model learned from.",
            "Believe the lower figure. Find out what differs (machine, hospital, time), and train "
            "on images of that kind too.",
        )


def _is_uncertain(facts: Facts) -> Iterator[Worry]:
    if facts.low is None or facts.high is None or facts.high - facts.low < WIDE:
        return
    width = facts.high - facts.low
    yield Worry(
        min(0.9, 0.45 + 2 * width),
        f"{facts.images} images measure little",
        f"The {facts.metric} lies somewhere between {_percent(facts.low)} and "
        f"{_percent(facts.high)}: so few images say no more.",
        "Label more images to measure on, or use cross-validation, which measures on every image: "
        "dataset.folds=5 dataset.fold=all.",
    )


def _is_chosen_here(facts: Facts) -> Iterator[Worry]:
    if facts.chose_on_split:
        yield Worry(
            0.5,
            "No image was kept for a test",
            "These images also chose the epoch, the temperature and the thresholds, so every "
            "figure here is a little too good.",
            "Keep a test set: dataset.test_fraction=0.2, or a folder named test; or measure on "
            "fresh images: finetune evaluate root=FOLDER.",
        )


def _has_weak_class(facts: Facts) -> Iterator[Worry]:
    known = [row for row in facts.classes if row.recall is not None]
    if len(known) < 2:
        return
    worst = min(known, key=lambda row: row.recall or 0.0)
    mean = sum(row.recall or 0.0 for row in known) / len(known)
    recall = worst.recall or 0.0
    if mean - recall < 0.02 or recall >= 0.98:
        return
    missed = round((1 - recall) * worst.support)
    yield Worry(
        min(0.95, 0.4 + 2 * (mean - recall)),
        f'"{worst.name}" is found least',
        f"Of {worst.support} images of {worst.name}, {missed} are taken for something else: it is "
        f"found in {_percent(recall)} of the cases, the classes on average in {_percent(mean)}.",
        "Look at its mistakes below. More images of this class help most; dataset.balance and the "
        "threshold move the line.",
    )


def _has_few(facts: Facts) -> Iterator[Worry]:
    few = [row for row in facts.classes if 0 < row.support < ENOUGH_IMAGES]
    if few:
        least = min(few, key=lambda row: row.support)
        more = len(few) - 1
        has = "class has" if more == 1 else "classes have"
        others = f", and {more} more {has} few" if more else ""
        yield Worry(
            0.55 if len(few) < len(facts.classes) else 0.5,
            f'Only {least.support} images show "{least.name}"',
            f"Whatever is said of {least.name} rests on {least.support} images{others}.",
            "Read the intervals in the table of classes, not the numbers.",
        )


def _lacks_classes(facts: Facts) -> Iterator[Worry]:
    absent = [row.name for row in facts.classes if not row.support]
    if absent:
        shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        yield Worry(
            0.9,
            f"Nothing is known of {len(absent)} of {len(facts.classes)} classes",
            f"No image on {facts.split} shows {shown}: their figures are undefined and left out of "
            "every mean.",
            "Add images of them there.",
        )


def _is_sure_and_wrong(facts: Facts) -> Iterator[Worry]:
    if len(facts.mistakes) < 3:
        return
    sure = sum(probability >= SURE for probability in facts.mistakes)
    if sure:
        share = sure / len(facts.mistakes)
        yield Worry(
            0.3 + 0.4 * share,
            f"{sure} of {len(facts.mistakes)} mistakes {'is' if sure == 1 else 'are'} made with "
            "certainty",
            f"There the model gives its wrong answer at least {_percent(SURE)}, so that no "
            "threshold catches them.",
            "Look at them first: such images are often mislabelled, or of a kind that training "
            "never showed.",
        )


def _is_miscalibrated(facts: Facts) -> Iterator[Worry]:
    error = facts.calibration_error
    # Few images scatter: ECE is not zero even where every probability is right.
    if error is not None and facts.images >= 200 and error > 0.05:
        yield Worry(
            min(0.8, 0.4 + 3 * error),
            "Its probabilities are not to be taken at their word",
            f"They are off by {_percent(error)} on average on {facts.split}.",
            "Read the reliability diagram; use the order of the probabilities, not their size.",
        )


def _leaves_more_errors(facts: Facts) -> Iterator[Worry]:
    if facts.threshold_error is not None:
        here, promised = facts.threshold_error
        if here > max(2 * promised, promised + 0.02):
            yield Worry(
                0.65,
                "Abstaining helps less here than on validation",
                f"Of the answers that are left, {_percent(here)} are wrong on {facts.split}; on "
                f"validation it was {_percent(promised)}.",
                "Choose the threshold on images of this kind: predict abstain=PROBABILITY.",
            )


def _misses_coverage(facts: Facts) -> Iterator[Worry]:
    if facts.sets_coverage is not None:
        here, asked = facts.sets_coverage
        if here < asked - 0.02:
            yield Worry(
                0.6 + (asked - here),
                "Prediction sets miss the true class too often",
                f"They hold it in {_percent(here)} of the cases on {facts.split}, instead of "
                f"{_percent(asked)}.",
                "The promise holds for images like those of validation only; calibrate on images "
                "of this kind.",
            )


def _has_label_issues(facts: Facts) -> Iterator[Worry]:
    if facts.label_issues is not None:
        issues, images = facts.label_issues
        if issues and images:
            yield Worry(
                min(0.85, 0.35 + 4 * issues / images),
                f"{issues} labels look wrong",
                f"Of {images} training and validation images, {issues} look more like another "
                "class than like their own label. Some are simply hard; a person must look.",
                "They are shown below and listed in label_issues.csv; correct what is wrong, and "
                "train again.",
            )


def _has_findings(facts: Facts) -> Iterator[Worry]:
    for finding in facts.findings:
        name = finding.name.replace("_", " ")
        yield Worry(
            0.97 if finding.is_error else _AUDIT_WEIGHTS.get(finding.name, 0.25),
            f"The images: {name}",
            finding.message,
            finding.remedy,
        )


def _could_go_on(facts: Facts) -> Iterator[Worry]:
    if facts.is_best_last:
        yield Worry(
            0.3,
            "The training could go on",
            "The last epoch was the best one, so that more of them may still help.",
            "Train longer: trainer.epochs=N.",
        )


def _left_out(facts: Facts) -> Iterator[Worry]:
    if facts.left_out:
        yield Worry(
            0.5,
            f"{facts.left_out} images could not be read",
            "They are not part of any figure here.",
            "Replace them; the model refuses such files, too.",
        )


_AUDIT_WEIGHTS = {
    "near_conflicting_labels": 0.6,
    "near_duplicates_across_splits": 0.7,
    "no_groups": 0.5,
    "unreadable": 0.45,
    "few_images": 0.45,
    "missing_class": 0.6,
    "imbalance": 0.3,
    "duplicates": 0.3,
}

_RULES: tuple[Callable[[Facts], Iterator[Worry]], ...] = (
    _falls_elsewhere,
    _is_uncertain,
    _is_chosen_here,
    _has_weak_class,
    _has_few,
    _lacks_classes,
    _is_sure_and_wrong,
    _is_miscalibrated,
    _leaves_more_errors,
    _misses_coverage,
    _has_label_issues,
    _has_findings,
    _could_go_on,
    _left_out,
)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
