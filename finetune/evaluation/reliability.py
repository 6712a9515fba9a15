"""Whether probabilities mean what they say: how often an answer given with 80 % is right.

Shapes: ``N`` images, ``C`` classes or labels.

With ``multiclass``, what is binned is the probability of the answer (its top label), and right
means that the answer is. With ``multilabel``, it is the probability of every label of every image,
and right means that the image shows it, so that a label that is denied for good reason counts as
little confidence and rarely right, which is calibrated.

Bins have equal width; a probability on a border belongs to the bin that ends there, as 0 belongs
to the first. That is the code of Guo et al. 2017; torchmetrics puts it into the next bin, and
probabilities of exactly 1 into a bin of their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.models.answers import Task, as_hot


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers of similar confidence.

    Attributes:
        confidence: their mean probability, in [0, 1].
        accuracy: share of them that are right, in [0, 1].
        count: how many, >= 1.
    """

    confidence: float
    accuracy: float
    count: int


def reliability_bins(
    probabilities: Tensor, targets: Tensor, task: Task, bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """Group answers by their confidence; bins without an answer are left out.

    Args:
        probabilities: ``[N, C]`` in [0, 1].
        targets: classes ``[N]`` int64, or with ``multilabel`` multi-hot ``[N, C]``.
        task: what the probabilities mean.
        bins: of equal width, >= 1.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """
    if bins < 1:
        raise ValueError(f"bins: got {bins}, expected >= 1.")
    confidence, is_right = answers_to_bin(probabilities, targets, task)
    places = bin_places(confidence, bins)
    counts = torch.bincount(places, minlength=bins)
    confidences = torch.bincount(places, weights=confidence, minlength=bins) / counts
    accuracies = torch.bincount(places, weights=is_right.double(), minlength=bins) / counts
    return tuple(
        ReliabilityBin(float(confidences[i]), float(accuracies[i]), int(counts[i]))
        for i in counts.nonzero().flatten().tolist()
    )


def expected_calibration_error(
    probabilities: Tensor, targets: Tensor, task: Task, bins: int = 15
) -> float:
    """Average the distance between confidence and accuracy over all answers, in [0, 1].

    Few answers scatter, so that it is larger than 0 even where every probability is right.

    Args:
        probabilities: as for `reliability_bins`, at least one image.
        targets: likewise.
        task: likewise.
        bins: likewise.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
    """
    if not len(probabilities):
        raise ValueError("probabilities: got no image, expected at least one.")
    found = reliability_bins(probabilities, targets, task, bins)
    total = sum(row.count for row in found)
    return sum(row.count * abs(row.confidence - row.accuracy) for row in found) / total


def answers_to_bin(probabilities: Tensor, targets: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Give the confidence of each answer, float64, and whether it is right, bool.

    ``[N]`` of both with ``multiclass``, ``[N * C]`` with ``multilabel``, image by image.
    """
    numbers = probabilities.detach().cpu().double().clamp(0, 1)
    is_true = as_hot(targets.cpu(), numbers.shape[1])
    if task == "multilabel":
        return numbers.flatten(), is_true.flatten()
    # The answer is that of argmax: of equal probabilities, max may point at another one.
    given = numbers.argmax(dim=1, keepdim=True)
    return numbers.gather(1, given).squeeze(1), is_true.gather(1, given).squeeze(1)


def bin_places(confidence: Tensor, bins: int) -> Tensor:
    """Number the bin of each confidence, int64, from 0."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return torch.bucketize(confidence, edges[1:-1].contiguous())
