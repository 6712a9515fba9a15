"""The scores of many resamples at once, as functions of weighted sums over images.

Shapes: ``N`` images, ``C`` classes or labels, ``U`` units (what is drawn together: the images of
one group, or a single image), ``R`` resamples, ``S`` steps of a ranking, ``B`` bins.

A resample says how often each unit was drawn: weights ``[U, R]``. A matrix ``[.., U]`` times the
weights gives the sums of all resamples, and the scores are functions of these. With weights of 1
they equal those of `finetune.evaluation.metrics` and `finetune.evaluation.multilabel`; what is
undefined is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from finetune.evaluation.metrics import (
    are_in_top5,
    cohen_kappa,
    log_losses,
    matthews_correlation,
)
from finetune.evaluation.multilabel import pair_log_losses
from finetune.evaluation.reliability import answers_to_bin, bin_places
from finetune.evaluation.scores import Counts, class_scores
from finetune.models.answers import Task, as_hot, decide

Numbers = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]
Units = npt.NDArray[np.int64]


class Scores(NamedTuple):
    """By field name of `Metrics` or `MultilabelMetrics` ``[R]``, of `ClassMetrics` ``[C, R]``."""

    overall: dict[str, Numbers]
    per_class: dict[str, Numbers]


_BINS = 15
"""As many as `expected_calibration_error` has."""


class Ranking(NamedTuple):
    """The images of one class and those of the others by falling probability, ``[S, U]`` each.

    A step holds all images of one probability, so that ties count as ties. Neighbouring steps
    without an image of the class are joined, which changes no area.
    """

    positives: csr_array
    negatives: csr_array

    @property
    def fewest_units(self) -> int:
        """Count the units with an image of the class, or with another one; the fewer of both."""
        return min(int(np.count_nonzero(np.bincount(side.indices))) for side in self)


@dataclass(frozen=True)
class Sums:
    """What is added up over the images of a resample.

    Attributes:
        task: what the probabilities mean.
        num_images: N.
        counts: true positives, true and given images, class by class each: ``[3 C, U]``.
        gaps: confidence minus being right, by bin of confidence: ``[B, U]``.
        means: of each of ``names``, what is averaged over the images; the last row counts these:
            ``[M + 1, U]``.
        names: the M scores that are means over images.
    """

    task: Task
    num_images: int
    counts: csr_array
    gaps: csr_array
    means: csr_array
    names: tuple[str, ...]


def prepare_sums(probabilities: Tensor, targets: Tensor, *, task: Task, units: Units) -> Sums:
    """Add up each unit's images for `counted_scores`.

    Args:
        probabilities: ``[N, C]`` float64 on the CPU.
        targets: classes ``[N]``, or with ``multilabel`` multi-hot ``[N, C]``.
        task: what the probabilities mean.
        units: ``[N]``, in 0..U-1.
    """
    num_classes = probabilities.shape[1]
    is_true, is_given = as_hot(targets, num_classes), decide(probabilities, task)
    if task == "multilabel":
        is_right = is_given == is_true
        of_images = {
            "exact_match": is_right.all(1),
            "hamming_accuracy": is_right.double().mean(1),
            "log_loss": pair_log_losses(probabilities, is_true).mean(1),
            "brier_score": (probabilities - is_true.double()).square().mean(1),
        }
    else:
        of_images = {
            "accuracy": (is_given & is_true).any(1),
            "log_loss": log_losses(probabilities, targets),
            "brier_score": (probabilities - is_true.double()).square().sum(1),
        }
        if num_classes > 5:
            of_images["top5_accuracy"] = are_in_top5(probabilities, targets)
    marks = torch.cat([is_given & is_true, is_true, is_given], dim=1)
    images, columns = marks.nonzero(as_tuple=True)
    rows = [*of_images.values(), torch.ones(len(targets))]
    # Sparse, though the means have no zeros: a product of dense matrices starts threads, and on a
    # busy machine these wait for each other for seconds.
    return Sums(
        task=task,
        num_images=len(targets),
        counts=csr_array(
            (np.ones(len(images)), (columns.numpy(), units[images.numpy()])),
            shape=(3 * num_classes, int(units.max()) + 1),
        ),
        gaps=_gaps(probabilities, targets, task, units),
        means=csr_array(
            np.stack([np.bincount(units, weights=row.double().numpy()) for row in rows])
        ),
        names=tuple(of_images),
    )


def counted_scores(sums: Sums, weights: Numbers) -> Scores:
    """Score resamples by everything but rankings.

    Args:
        sums: from `prepare_sums`.
        weights: ``[U, R]``, how often each unit was drawn.
    """
    *of_images, images = sums.means @ weights
    overall = {name: values / images for name, values in zip(sums.names, of_images, strict=True)}
    overall["expected_calibration_error"] = np.abs(sums.gaps @ weights).sum(0) / images
    tp, true, given = (torch.from_numpy(part) for part in np.split(sums.counts @ weights, 3))
    counts = Counts(tp, given - tp, true - tp, torch.from_numpy(images) - true - given + tp)
    by_class = class_scores(counts)
    precision_of_present = torch.where(true > 0, by_class.precision, torch.nan)
    means = {
        "macro_precision": precision_of_present.nanmean(0),
        "macro_recall": by_class.recall.nanmean(0),
        "macro_f1": by_class.f1.nanmean(0),
    }
    if sums.task == "multilabel":
        together = Counts(*(values.sum(0) for values in counts))
        means["micro_f1"] = class_scores(together).f1
    else:
        means["balanced_accuracy"] = means["macro_recall"]
        means["cohen_kappa"] = cohen_kappa(counts)
        means["matthews_correlation"] = matthews_correlation(counts)
        if len(tp) == 2:
            means["sensitivity"] = by_class.recall[1]
            means["specificity"] = by_class.specificity[1]
    overall |= {name: values.numpy() for name, values in means.items()}
    per_class = {
        "precision": by_class.precision.numpy(),
        "recall": by_class.recall.numpy(),
        "f1": by_class.f1.numpy(),
    }
    return Scores(overall, per_class)


def calibration_noise(sums: Sums, weights: Numbers) -> Numbers:
    """Give the sum over the bins of how far each is from its measured gap, as a share: ``[R]``.

    The expected calibration error of a resample if that of the images were 0; also the most by
    which it can differ from theirs.
    """
    drawn = sums.means[[-1]] @ weights
    measured = sums.gaps.sum(1)[:, None] / sums.num_images
    return np.asarray(np.abs(sums.gaps @ weights - measured * drawn).sum(0) / drawn[0])


def prepare_ranking(probabilities: Numbers, is_true: Marks, units: Units) -> Ranking:
    """Rank the images by the probability of one class; all ``[N]``.

    Any numbers do that grow with the probability.
    """
    order = np.argsort(-probabilities, kind="stable")
    falling, is_positive = probabilities[order], is_true[order]
    is_new = np.concatenate([[True], falling[1:] != falling[:-1]])
    starts = np.flatnonzero(is_new)
    has_positive = np.logical_or.reduceat(is_positive, starts)
    is_joined = ~has_positive & ~np.concatenate([[True], has_positive[:-1]])
    is_joined[0] = False
    steps = (np.cumsum(~is_joined) - 1)[np.cumsum(is_new) - 1]
    shape = (int(steps[-1]) + 1, int(units.max()) + 1)

    def rows(is_part: Marks) -> csr_array:
        ends = np.cumsum(np.bincount(steps[is_part], minlength=shape[0]))
        of_images = units[order[is_part]].astype(np.int32)
        indptr = np.concatenate([[0], ends]).astype(np.int32)
        return csr_array((np.ones(len(of_images)), of_images, indptr), shape=shape)

    return Ranking(rows(is_positive), rows(~is_positive))


def prepare_rankings(probabilities: Tensor, targets: Tensor, *, units: Units) -> list[Ranking]:
    """Rank the images by the probability of each class; arguments as of `prepare_sums`."""
    is_true = as_hot(targets, probabilities.shape[1]).numpy()
    # As `finetune.evaluation.scores` does: what is more than 1 by rounding ranks as 1.
    columns = np.ascontiguousarray(probabilities.clamp(0, 1).numpy().T)
    return [
        prepare_ranking(column, true, units)
        for column, true in zip(columns, is_true.T, strict=True)
    ]


def ranked_scores(ranking: Ranking, weights: Numbers) -> tuple[Numbers, Numbers]:
    """Give AUROC and average precision of one class in resamples ``[U, R]``, each ``[R]``."""
    positives, negatives = ranking.positives @ weights, ranking.negatives @ weights
    found, wrong = positives.cumsum(0), negatives.cumsum(0)
    all_positives, all_negatives = found[-1], wrong[-1]
    is_defined = (all_positives > 0) & (all_negatives > 0)
    pairs = np.where(is_defined, all_positives * all_negatives, np.nan)
    # Each negative is outranked by the positives before its step, and by half of those in it.
    areas = np.einsum("sr,sr->r", negatives, found - positives / 2) / pairs
    precision = found / np.maximum(found + wrong, 1)
    grown = np.einsum("sr,sr->r", positives, precision)
    return areas, grown / np.where(is_defined, all_positives, np.nan)


def scores_of_rankings(task: Task, rankings: Sequence[Ranking], weights: Numbers) -> Scores:
    """Score resamples ``[U, R]`` by how the images are ranked."""
    areas, precisions = np.stack([ranked_scores(ranking, weights) for ranking in rankings], axis=1)
    is_binary = task == "multiclass" and len(areas) == 2
    return Scores(
        overall={
            "auroc": areas[1] if is_binary else _mean_of_defined(areas),
            "mean_average_precision": _mean_of_defined(precisions),
        },
        per_class={"auroc": areas, "average_precision": precisions},
    )


def _mean_of_defined(values: Numbers) -> Numbers:
    """Average over the classes ``[C, R]``; torch's mean says nothing where none is defined."""
    return np.asarray(torch.from_numpy(values).nanmean(0))


def _gaps(probabilities: Tensor, targets: Tensor, task: Task, units: Units) -> csr_array:
    confidence, is_right = answers_to_bin(probabilities, targets, task)
    per_image = len(confidence) // len(units)
    gaps = (confidence - is_right.double()).numpy() / per_image
    places = (bin_places(confidence, _BINS).numpy(), np.repeat(units, per_image))
    return csr_array((gaps, places), shape=(_BINS, int(units.max()) + 1))
