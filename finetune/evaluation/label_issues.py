"""Which labels are probably wrong, by confident learning.

Shapes: ``N`` images, ``C`` classes or labels. Probabilities must come from a model that did not
train on the image: of validation, or out of fold
(`finetune.training.probe.out_of_fold_probabilities`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """An image whose label is probably wrong.

    Attributes:
        index: place of the image, in 0..N-1.
        given: its class, as labelled.
        suggested: the class that it most probably shows.
        score: one less the probability of ``given``, in (0, 1].
    """

    index: int
    given: int
    suggested: int
    score: float


@dataclass(frozen=True, slots=True)
class MultilabelIssue:
    """One label of an image that is probably wrong.

    Attributes:
        index: place of the image, in 0..N-1.
        label: which one, in 0..C-1.
        is_given: whether the image is labelled so; then the label is probably too much, else it
            is probably missing.
        score: probability of the opposite of what is given, in (0.5, 1].
    """

    index: int
    label: int
    is_given: bool
    score: float


def find_label_issues(probabilities: Tensor, labels: Tensor) -> tuple[LabelIssue, ...]:
    """Find images that look more like another class than like their own, worst first.

    How many labels are wrong is estimated by confident learning. A class's threshold is the mean
    probability of that class over the images so labelled. An image is confidently of the most
    probable class among those that reach their thresholds. Of the images with one label that are
    confidently of any class, the share that is of another class is the share of all images with
    this label that are taken for mislabelled; these numbers are added up and rounded.

    As many images are issues: those whose own label is least probable, as long as another class
    is more probable. Of equal ones, the first image comes first.

    This is worth as much as the model: one that is no better than chance suspects the images of
    small classes. A class that no image is labelled with is never suggested; so images of a
    single class, and none, have no issues.

    Args:
        probabilities: ``[N, C]`` in [0, 1], not of images that the model trained on; rows with a
            NaN are left out.
        labels: ``[N]`` int64, in 0..C-1.

    Source: Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels",
    for the number (the calibrated confident joint). The order is that of the self-confidence:
    choosing by class, or by pair of classes and margin, as there, found fewer planted errors
    (``benchmarks/label_noise.py``).
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities and labels: got {list(probabilities.shape)} and "
            f"{list(labels.shape)}, expected [N, C] and [N]."
        )
    places = probabilities.isfinite().all(1).nonzero().flatten()
    known, given = probabilities[places].double(), labels[places]
    if not known.numel():
        return ()
    is_used = torch.bincount(given, minlength=known.shape[1]) > 0
    probable, suggested = known.masked_fill(~is_used, -1.0).max(dim=1)
    own = known.gather(1, given.unsqueeze(1)).squeeze(1)
    suspects = (probable > own).nonzero().flatten()
    chosen = suspects[own[suspects].argsort(stable=True)][: _count_errors(known, given)]
    columns = (places[chosen], given[chosen], suggested[chosen], 1 - own[chosen])
    return tuple(
        LabelIssue(*row) for row in zip(*(column.tolist() for column in columns), strict=True)
    )


def find_multilabel_issues(probabilities: Tensor, targets: Tensor) -> tuple[MultilabelIssue, ...]:
    """Find labels that are probably missing or too much, worst first.

    Each label is judged for itself, as two classes by the rule of `find_label_issues`: shown and
    not shown. A label that no image, or every image, shows has no issues.

    Args:
        probabilities: ``[N, C]`` in [0, 1], not of images that the model trained on; NaN are left
            out.
        targets: multi-hot, ``[N, C]``.
    """
    if probabilities.ndim != 2 or targets.shape != probabilities.shape:
        raise ValueError(
            f"probabilities and targets: got {list(probabilities.shape)} and "
            f"{list(targets.shape)}, expected [N, C] of both."
        )
    found = [
        MultilabelIssue(issue.index, label, bool(issue.given), issue.score)
        for label in range(probabilities.shape[1])
        for issue in find_label_issues(
            torch.stack([1 - probabilities[:, label], probabilities[:, label]], dim=1),
            (targets[:, label] > 0.5).long(),
        )
    ]
    return tuple(sorted(found, key=lambda issue: (-issue.score, issue.index, issue.label)))


def _count_errors(probabilities: Tensor, labels: Tensor) -> int:
    """Estimate how many of the labels are wrong, N and C at least 1."""
    # A mean of equal numbers is off by their rounding.
    is_confident = probabilities >= _thresholds(probabilities, labels) - 1e-9
    rows = is_confident.any(1)
    looks = probabilities.masked_fill(~is_confident, -1.0).argmax(1)[rows]
    sizes, confident, wrong = (
        torch.bincount(some, minlength=probabilities.shape[1]).double()
        for some in (labels, labels[rows], labels[rows][looks != labels[rows]])
    )
    return int((wrong / confident.clamp(min=1) * sizes).sum() + 0.5)


def _thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Average each class's probability over its own images, ``[C]``; infinite without any."""
    classes = probabilities.shape[1]
    sums = torch.zeros(classes, dtype=probabilities.dtype)
    sums.index_add_(0, labels, probabilities.gather(1, labels.unsqueeze(1)).squeeze(1))
    counts = torch.bincount(labels, minlength=classes)
    return torch.where(counts > 0, sums / counts, torch.inf)
