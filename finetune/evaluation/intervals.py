"""How far a score may be from its true value, by resampling the images or by counting exactly.

Shapes: ``N`` images, ``C`` classes or labels, ``U`` units, ``R`` resamples.

The rules:

- Images of one group, such as a patient, are drawn together: a unit. An image without a group is
  a unit of its own.
- The interval lies between two percentiles of the score over the resamples (Efron & Tibshirani
  1993, chapter 13), and reaches to the measured score where that lies outside.
- AUROC and average precision, which the percentiles hold too near to 1: measured score plus and
  minus a quantile of Student's t times the standard error over the resamples, on the scale of log
  odds (Pepe 2003, section 5.2; for precision and recall Boyd, Eng & Page 2013). The degrees of
  freedom are those of the units with the class or without it, whichever are fewer.
- Expected calibration error, a sum of distances, which chance makes larger, and once more in each
  resample: its lower end is what is left without the chance of `calibration_noise`, its upper end
  the lower percentile mirrored at the measured value (Davison & Hinkley 1997, section 5.2).
- A resample in which the score is undefined is left out. If more than a tenth are, there is no
  interval, nor if there are fewer than five units: what is drawn from then varies too little.
- No interval has no width. A proportion (accuracy, exact match, Hamming accuracy, top-5,
  sensitivity, specificity, recall, precision) with fewer than ten units right or fewer than ten
  wrong has the exact one of `finetune.evaluation.proportions`; so does F1, which is a function of
  one. A macro mean of recall, precision or F1 has one made of its classes', if all together have
  so few, or if there are few classes and one of them has. An AUROC of 0 or 1 has that of
  independent pairs. All these say ``exact``. Any other score that never varies has none.
- With many images times classes, AUROC and average precision use fewer resamples than the rest.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import Tensor

from finetune.evaluation.bootstrap import (
    Drawn,
    between_percentiles,
    draw_scores,
    of_calibration,
    on_log_odds,
    vary,
)
from finetune.evaluation.exact_intervals import Found, exact_intervals
from finetune.evaluation.metrics import Metrics
from finetune.evaluation.multilabel import MultilabelMetrics
from finetune.evaluation.resampling import Scores, prepare_rankings, prepare_sums
from finetune.evaluation.significance import number_units
from finetune.models.answers import Task

PER_CLASS = ("precision", "recall", "f1", "auroc", "average_precision")

_FEWEST_UNITS = 5


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends, and how they were found."""

    low: float
    high: float
    method: Literal["bootstrap", "exact"]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Of every score; ``None`` where it is undefined, or where nothing honest can be said.

    Attributes:
        level: share of such intervals that hold the true value, about.
        resamples: R.
        units: U, the independent groups and images that were drawn.
        overall: by field name of `Metrics` or `MultilabelMetrics`.
        per_class: by field name of `ClassMetrics` (``PER_CLASS``), one row per class.
    """

    level: float
    resamples: int
    units: int
    overall: dict[str, Interval | None]
    per_class: tuple[dict[str, Interval | None], ...]

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values: dicts, lists, strings, finite numbers and ``None``."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain


def bootstrap_intervals(
    probabilities: Tensor,
    targets: Tensor,
    class_names: Sequence[str],
    *,
    task: Task,
    groups: Sequence[str | None] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Give every score's interval, by the rules of this module.

    Args:
        probabilities: ``[N, C]`` floating, finite, as for `classification_metrics` or
            `multilabel_metrics`.
        targets: classes ``[N]`` int64, or with ``multilabel`` multi-hot ``[N, C]``.
        class_names: ``C`` names in the order of the columns.
        task: what the probabilities mean.
        groups: ``[N]``, whose images are drawn together, such as a patient's; None for no groups.
        resamples: R, >= 1; 1000 make the ends steady to about a tenth of the width.
        level: in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: the shapes or ranges do not fit each other.
    """
    probabilities, targets = probabilities.detach().cpu().double(), targets.detach().cpu()
    _check(probabilities, targets, class_names, groups, resamples, level)
    units = number_units([None] * len(targets) if groups is None else groups)
    num_units = int(units.max()) + 1
    sums = prepare_sums(probabilities, targets, task=task, units=units)
    rankings = prepare_rankings(probabilities, targets, units=units)
    drawn = draw_scores(sums, rankings, num_units, resamples, seed)
    areas = drawn.measured.per_class["auroc"][:, 0]
    exact = exact_intervals(
        probabilities, targets, areas=areas, task=task, units=units, level=level
    )
    fewest = [ranking.fewest_units for ranking in rankings]
    is_binary = task == "multiclass" and len(fewest) == 2
    of_all = fewest[1] if is_binary else num_units
    return Intervals(
        level=level,
        resamples=resamples,
        units=num_units,
        overall=_choose(score_names(task), exact.overall, drawn, level, units=of_all),
        per_class=tuple(
            _choose(PER_CLASS, row, _of_class(drawn, index), level, units=fewest[index])
            for index, row in enumerate(exact.per_class)
        ),
    )


def score_names(task: Task) -> tuple[str, ...]:
    """List the scores that have an interval: the fields that hold one number each."""
    kind = MultilabelMetrics if task == "multilabel" else Metrics
    return tuple(each.name for each in fields(kind) if each.type in (float, float | None))


def _choose(
    names: Sequence[str], exact: Found, drawn: Drawn, level: float, *, units: int
) -> dict[str, Interval | None]:
    """Take the exact interval of a score where there is one, else that of the resamples."""
    chosen: dict[str, Interval | None] = dict.fromkeys(names)
    for name, values in drawn.resampled.overall.items():
        measured = float(drawn.measured.overall[name][0])
        if name in exact:
            chosen[name] = Interval(exact[name].low, exact[name].high, "exact")
        elif drawn.num_units >= _FEWEST_UNITS and math.isfinite(measured) and vary(values):
            match name:
                case "auroc" | "average_precision" | "mean_average_precision":
                    ends = on_log_odds(values, measured, level, units=units)
                case "expected_calibration_error":
                    ends = of_calibration(values, measured, level, noise=drawn.noise)
                case _:
                    ends = between_percentiles(values, measured, level)
            chosen[name] = None if ends is None else Interval(*ends, "bootstrap")
    return chosen


def _of_class(drawn: Drawn, index: int) -> Drawn:
    """Take one class's scores as if they were of all together."""
    measured, resampled = (
        Scores({name: values[index] for name, values in scores.per_class.items()}, {})
        for scores in (drawn.measured, drawn.resampled)
    )
    return drawn._replace(measured=measured, resampled=resampled)


def _check(
    probabilities: Tensor,
    targets: Tensor,
    class_names: Sequence[str],
    groups: Sequence[str | None] | None,
    resamples: int,
    level: float,
) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] != len(class_names):
        raise ValueError(
            f"probabilities: got shape {list(probabilities.shape)}, "
            f"expected [N, {len(class_names)}]."
        )
    if not len(targets) or len(targets) != len(probabilities):
        raise ValueError(
            f"targets: got {len(targets)}, expected one for each of {len(probabilities)} images."
        )
    if groups is not None and len(groups) != len(targets):
        raise ValueError(
            f"groups: got {len(groups)}, expected one for each of {len(targets)} images."
        )
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1.")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a number between 0 and 1.")
