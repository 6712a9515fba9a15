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
        suggested: the class that it more probably shows.
        score: probability of ``suggested`` less that of ``given``, in (0, 1].
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
        score: probability of the opposite less that of what is given, in (0, 1].
    """

    index: int
    label: int
    is_given: bool
    score: float


def find_label_issues(probabilities: Tensor, labels: Tensor) -> tuple[LabelIssue, ...]:
    """Find images that look more like another class than like their own, worst first.

    A class's threshold is the mean probability of that class over the images so labelled. An
    image is confidently of the most probable class among those that reach their thresholds. Of
    the images labelled i that are confidently of any class, the share that is confidently of j
    says how many of all images labelled i are to be taken for mislabelled: as many as that,
    rounded, with the largest margins (probability of j less that of i) are issues. Only positive
    margins count, and of an image that several classes claim, the largest. The margin is the
    score; of equal ones, the first image comes first.

    The list is about as long as there are wrong labels. It is worth as much as the model: one
    that is no better than chance suspects the images of small classes. A class that no image is
    labelled with is never suggested; so images of a single class, and none, have no issues.

    Args:
        probabilities: ``[N, C]`` in [0, 1], not of images that the model trained on; rows with a
            NaN are left out.
        labels: ``[N]`` int64, in 0..C-1.

    Source: Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels":
    the confident joint, calibrated, and pruning by noise rate.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities and labels: got {list(probabilities.shape)} and "
            f"{list(labels.shape)}, expected [N, C] and [N]."
        )
    places = probabilities.isfinite().all(1).nonzero().flatten()
    known, given = probabilities[places].double(), labels[places]
    counts = _count_errors(known, given)
    worst: dict[int, LabelIssue] = {}
    for i in sorted(set(given.tolist())):
        rows = (given == i).nonzero().flatten()
        for j in counts[i].nonzero().flatten().tolist():
            margins = known[rows, j] - known[rows, i]
            chosen = margins.argsort(descending=True, stable=True)[: int(counts[i, j])]
            for row in chosen[margins[chosen] > 0].tolist():
                issue = LabelIssue(int(places[rows[row]]), i, j, float(margins[row]))
                if issue.index not in worst or worst[issue.index].score < issue.score:
                    worst[issue.index] = issue
    return tuple(sorted(worst.values(), key=lambda issue: (-issue.score, issue.index)))


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


def _count_errors(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Estimate how many images labelled i are of class j, ``[C, C]`` int64, 0 where i is j."""
    classes = probabilities.shape[1]
    # A mean of equal numbers is off by their rounding.
    is_confident = probabilities >= _thresholds(probabilities, labels) - 1e-9
    rows = is_confident.any(1) if classes else is_confident.new_zeros(len(labels))
    looks = probabilities[rows].masked_fill(~is_confident[rows], -1.0)
    joint = torch.zeros(classes, classes, dtype=torch.float64)
    if len(looks):
        one = torch.ones(len(looks), dtype=torch.float64)
        joint.index_put_((labels[rows], looks.argmax(1)), one, accumulate=True)
    sizes = torch.bincount(labels, minlength=classes).unsqueeze(1)
    estimated = joint / joint.sum(1, keepdim=True).clamp(min=1) * sizes
    return (estimated + 0.5).floor().long().fill_diagonal_(0)


def _thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Average each class's probability over its own images, ``[C]``; infinite without any."""
    classes = probabilities.shape[1]
    sums = torch.zeros(classes, dtype=probabilities.dtype)
    sums.index_add_(0, labels, probabilities.gather(1, labels.unsqueeze(1)).squeeze(1))
    counts = torch.bincount(labels, minlength=classes)
    return torch.where(counts > 0, sums / counts, torch.inf)
