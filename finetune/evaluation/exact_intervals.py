"""Exact intervals of those scores that rest on too few images for resampling.

Shapes: ``N`` images, ``C`` classes or labels, ``U`` units (see `finetune.evaluation.intervals`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.metrics import are_in_top5
from finetune.evaluation.proportions import (
    Limits,
    Proportion,
    exact_limits,
    is_scarce,
    jaccard_to_f1,
    limits_of_mean,
    perfect_ranking_limits,
)
from finetune.evaluation.resampling import Marks, Numbers, Units
from finetune.models.answers import Task, as_hot, decide

Found = dict[str, Limits]
"""By name of the score, those alone that need an exact interval."""

_OF_CLASSES = ("recall", "precision", "f1")


class Exact(NamedTuple):
    """Of all classes together, and one row per class."""

    overall: Found
    per_class: list[Found]


def exact_intervals(
    probabilities: Tensor,
    targets: Tensor,
    *,
    areas: Numbers,
    task: Task,
    units: Units,
    level: float,
) -> Exact:
    """Give the intervals of what rests on too few images for resampling.

    Args:
        probabilities: ``[N, C]`` float64 on the CPU.
        targets: classes ``[N]``, or with ``multilabel`` multi-hot ``[N, C]``.
        areas: AUROC of each class, ``[C]``, NaN where undefined.
        task: what the probabilities mean.
        units: ``[N]``, in 0..U-1.
        level: of the intervals, in (0, 1).
    """
    num_classes = probabilities.shape[1]
    is_given = decide(probabilities, task).numpy()
    is_true = as_hot(targets, num_classes).numpy()
    is_right = is_given == is_true
    every = np.ones(len(units))
    found: dict[str, Proportion] = {}
    if task == "multilabel":
        found["exact_match"] = _proportion(is_right.all(1), every, units)
        found["hamming_accuracy"] = _proportion(is_right.sum(1), every * num_classes, units)
    else:
        found["accuracy"] = _proportion(is_right.all(1), every, units)
        if num_classes > 5:
            in_top5 = are_in_top5(probabilities, targets).numpy()
            found["top5_accuracy"] = _proportion(in_top5, every, units)
    overall = _of_scarce(found, level)
    if task == "multilabel" and is_true.any():
        both, either = (is_given & is_true).sum(1), (is_given | is_true).sum(1)
        overall |= _of_f1({"micro_f1": _proportion(both, either, units)}, level)
    means, rows = _by_class(is_given, is_true, task, units, level)
    mean_area, rows_of_areas = _of_areas(areas, is_true, task, units, level)
    if task == "multiclass" and num_classes == 2:
        # Of two classes, the recall of the first is the specificity.
        for name, row in (("sensitivity", rows[1]), ("specificity", rows[0])):
            overall |= {name: row["recall"]} if "recall" in row else {}
    return Exact(
        overall | means | mean_area,
        [row | area for row, area in zip(rows, rows_of_areas, strict=True)],
    )


def _by_class(
    is_given: Marks, is_true: Marks, task: Task, units: Units, level: float
) -> tuple[Found, list[Found]]:
    """Give intervals of the macro means, and of each class."""
    parts: dict[str, list[Proportion]] = {name: [] for name in _OF_CLASSES}
    rows: list[Found] = []
    for given, true in zip(is_given.T, is_true.T, strict=True):
        both = given & true
        precision = {"precision": _proportion(both, given, units)}
        rows.append(_of_scarce(precision, level))
        if true.any():
            recall = {"recall": _proportion(both, true, units)}
            jaccard = {"f1": _proportion(both, given | true, units)}
            rows[-1] |= _of_scarce(recall, level) | _of_f1(jaccard, level)
            for name, part in (precision | recall | jaccard).items():
                if part.trials.any():
                    parts[name].append(part)
    # Whether a unit may touch several classes: the labels of an image, or a patient's images.
    touched = sum(int((part.trials > 0).sum()) for part in parts["recall"])
    is_tied = task == "multilabel" or touched > int(units.max()) + 1
    overall = _of_means(parts, level, is_tied=is_tied)
    if task == "multiclass" and "macro_recall" in overall:
        overall["balanced_accuracy"] = overall["macro_recall"]
    return overall, rows


def _of_means(parts: Mapping[str, Sequence[Proportion]], level: float, *, is_tied: bool) -> Found:
    overall: Found = {}
    for name, of_classes in parts.items():
        if not is_scarce(of_classes):
            continue
        known = [limits for part in of_classes if (limits := exact_limits(part, level))]
        if name == "f1":
            known = [jaccard_to_f1(limits) for limits in known]
        # A mistake costs two classes their F1, but one its recall and one its precision.
        shared = len(known) if is_tied else 2 if name == "f1" else 1
        overall[f"macro_{name}"] = limits_of_mean(known, shared=shared)
    return overall


def _of_areas(
    areas: Numbers, is_true: Marks, task: Task, units: Units, level: float
) -> tuple[Found, list[Found]]:
    """Give intervals of AUROCs of 0 or 1: of their mean, and of each class."""
    rows: list[Found] = []
    num_units = int(units.max()) + 1
    for area, true in zip(areas.tolist(), is_true.T, strict=True):
        rows.append({})
        if area in (0, 1):
            sides = (len(np.unique(units[true])), len(np.unique(units[~true])))
            # Of a unit that has both kinds, one image is used.
            limits = perfect_ranking_limits(area, min(*sides, num_units // 2), level)
            if limits is not None:
                rows[-1]["auroc"] = limits
    if task == "multiclass" and len(areas) == 2:
        return rows[1], rows
    known = [row["auroc"] for row in rows if row]
    if not known or len(known) < np.isfinite(areas).sum():
        return {}, rows
    return {"auroc": limits_of_mean(known, shared=len(known))}, rows


def _of_scarce(proportions: dict[str, Proportion], level: float) -> Found:
    found = {}
    for name, proportion in proportions.items():
        limits = exact_limits(proportion, level) if is_scarce([proportion]) else None
        if limits is not None:
            found[name] = limits
    return found


def _of_f1(jaccard: dict[str, Proportion], level: float) -> Found:
    return {name: jaccard_to_f1(limits) for name, limits in _of_scarce(jaccard, level).items()}


def _proportion(successes: NDArray[Any], trials: NDArray[Any], units: Units) -> Proportion:
    return Proportion(
        np.bincount(units, successes.astype(np.float64)).astype(np.float64),
        np.bincount(units, trials.astype(np.float64)).astype(np.float64),
    )
