"""Which run of a comparison is the best, and which others may be as good."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.commands.entrants import Entrant
from finetune.evaluation.report.comparison import Measure, Pair, Standing
from finetune.evaluation.report.content import Value
from finetune.evaluation.significance import (
    SIGNIFICANT,
    difference,
    holm,
    mcnemar,
    number_units,
    paired_bootstrap,
    paired_score,
    sign_interval,
    swap_test,
)
from finetune.models.answers import Task, as_hot, decide

LEAST_SHARED = 0.5
"""Of the images of either run, so many must be shared for a test on these to say anything."""

_SHARES = {
    "accuracy": ("accuracy", "share of images that are classified right"),
    "exact_match": ("all labels right", "share of images with every label right"),
    "balanced_accuracy": ("balanced accuracy", "mean over the classes of the share found"),
    "macro_f1": ("macro F1", "mean over the classes of precision and recall in one"),
    "mean_average_precision": ("mAP", "mean over the classes of average precision"),
    "auroc": ("AUROC", "how well the order by probability parts the classes; 50 % is chance"),
    "sensitivity": ("sensitivity", "share of the positive class that is found"),
    "specificity": ("specificity", "share of the other class that is left alone"),
}
_LOWER = {
    "log_loss": ("log loss", "how far the probabilities are off, in nats; lower is better"),
    "expected_calibration_error": (
        "ECE",
        "how far the confidence is from the share that is right; lower is better",
    ),
}
_COMMON = ("macro_f1", "auroc", "log_loss", "expected_calibration_error")
_SHOWN: dict[Task, tuple[str, ...]] = {
    "multiclass": ("accuracy", "balanced_accuracy", *_COMMON),
    "multilabel": ("exact_match", "mean_average_precision", *_COMMON),
}


@dataclass(frozen=True)
class Headline:
    """The metric that ranks, and what is to be said where it did not choose every run."""

    measure: Measure
    warning: str | None = None

    @property
    def key(self) -> str:
        """Its name in ``metrics.json``."""
        return self.measure.key

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.measure.is_higher_better else -1


def choose_headline(entrants: Sequence[Entrant]) -> Headline:
    """Take the metric that chose the epochs of all runs, or the usual one where that cannot be."""
    task = entrants[0].description.task
    usual = "accuracy" if task == "multiclass" else "mean_average_precision"
    found = sorted({_chosen_by(entrant, usual) for entrant in entrants})
    if len(found) == 1 and found[0] in _known(task, len(entrants[0].description.class_names)):
        return Headline(measure_of(found[0]))
    return Headline(
        measure_of(usual),
        f"The runs were chosen by {' and '.join(name.replace('_', ' ') for name in found)}, but "
        f"are ranked by {measure_of(usual).name}.",
    )


def _chosen_by(entrant: Entrant, usual: str) -> str:
    """Name the metric as ``metrics.json`` does."""
    monitor = str(entrant.figures.get("monitor", usual)).removeprefix("val_")
    if monitor == "loss":
        return "log_loss"
    is_exact = monitor == "accuracy" and entrant.description.task == "multilabel"
    return "exact_match" if is_exact else monitor


def _known(task: Task, num_classes: int) -> set[str]:
    """List what can be tested: what is measured of a model, that is."""
    if task == "multilabel":
        return set(_SHOWN[task])
    binary = ("sensitivity", "specificity") if num_classes == 2 else ()
    return {*_SHOWN[task], "mean_average_precision", *binary}


def measure_of(key: str) -> Measure:
    """Describe a metric by its name in ``metrics.json``."""
    if key in _LOWER:
        return Measure(key, *_LOWER[key], is_share=key != "log_loss", is_higher_better=False)
    return Measure(key, *_SHARES[key])


def measures_of(task: Task, headline: Headline) -> tuple[Measure, ...]:
    """List what is shown of each run, the headline first."""
    others = [measure_of(key) for key in _SHOWN[task] if key != headline.key]
    return (headline.measure, *others)


def compare_pair(best: Entrant, other: Entrant, headline: Headline, resamples: int) -> Pair:
    """Compare the best with another run on the images that both were asked about.

    Returns:
        What was found; `correct` makes a judgement of it.
    """
    shared = _shared(best, other)
    pair = Pair(best.name, other.name, images=len(shared))
    if not shared or len(shared) < LEAST_SHARED * max(len(best.samples), len(other.samples)):
        return pair
    ours, theirs = (list(column) for column in zip(*shared, strict=True))
    task, targets = best.description.task, best.targets[ours]
    answers = [best.probabilities[ours], other.probabilities[theirs]]
    is_right = [(decide(p, task) == as_hot(targets, p.shape[1])).all(1) for p in answers]
    units = number_units([best.samples[place].group for place in ours])
    num_units = int(units.max()) + 1
    pair = replace(
        pair,
        units=num_units,
        only_best=int((is_right[0] & ~is_right[1]).sum()),
        only_other=int((is_right[1] & ~is_right[0]).sum()),
    )
    # The functions give the second model's lead, so the best comes second.
    ours_last = answers[1], answers[0]
    score = paired_score(headline.key, *ours_last, targets, task=task, units=units)
    lead = difference(score, num_units)
    if math.isnan(lead):
        return pair
    ends = list(paired_bootstrap(score, num_units, resamples=resamples) or ())
    if headline.key in ("accuracy", "exact_match") and num_units == len(units):
        p: float | None = mcnemar(pair.only_best, pair.only_other)
        # Of few images that tell the two apart, the bootstrap is surer than the test.
        ends += sign_interval(pair.only_other, pair.only_best, num_units)
    else:
        p = swap_test(score, num_units, resamples=resamples)
    advantage = Value(headline.sign * lead)
    if ends and max(ends) > min(ends):  # an interval without width would claim certainty
        low, high = sorted((headline.sign * min(ends), headline.sign * max(ends)))
        advantage = replace(advantage, low=low, high=high)
    return replace(pair, advantage=advantage, p=p)


def _shared(best: Entrant, other: Entrant) -> list[tuple[int, int]]:
    """Give the places of each image that both have, with the same label; none of other data."""
    if best.root.resolve() != other.root.resolve():
        return []
    places = {(sample.path, sample.labels): place for place, sample in enumerate(other.samples)}
    return [
        (place, places[sample.path, sample.labels])
        for place, sample in enumerate(best.samples)
        if (sample.path, sample.labels) in places
    ]


def correct(pairs: Sequence[Pair]) -> list[Pair]:
    """Correct the p values for their number, and judge by them."""
    corrected = iter(holm([pair.p for pair in pairs if pair.p is not None]))
    judged = []
    for pair in pairs:
        if pair.p is not None and pair.advantage is not None:
            p = next(corrected)
            # Where the images differ in part, the best of all may be behind on those shared.
            is_ahead = (pair.advantage.value or 0.0) > 0
            told_apart: Standing = "worse" if is_ahead else "unknown"
            standing = told_apart if p <= SIGNIFICANT else "equal"
            pair = replace(pair, p_corrected=p, standing=standing)
        judged.append(pair)
    return judged
