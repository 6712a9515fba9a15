"""From logits to probabilities, and from probabilities to labels: the one rule for both tasks.

Shapes: ``B`` images, ``C`` classes.

``multiclass`` gives each image its most probable class. ``multilabel`` gives it every label with
a probability of at least 0.5: any number of them, also none.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Task = Literal["multiclass", "multilabel"]

THRESHOLD = 0.5
"""A label of several is given from this probability on."""
SEPARATOR = "|"
"""Between the labels of one image, in every table that is written."""


class Answer(NamedTuple):
    """What is said about one image.

    Attributes:
        labels: names of the classes given, in class order; exactly one with ``multiclass``.
        probability: of these labels and no others; see `confidence`.
        probabilities: of every class, in class order.
    """

    labels: tuple[str, ...]
    probability: float
    probabilities: tuple[float, ...]


def to_probabilities(logits: Tensor, task: Task, temperature: float = 1.0) -> Tensor:
    """Turn ``[B, C]`` into float32 in [0, 1]; rows add up to 1 with ``multiclass`` alone.

    Source of the temperature: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    logits = logits.float() / temperature
    return logits.softmax(dim=1) if task == "multiclass" else logits.sigmoid()


def decide(probabilities: Tensor, task: Task) -> Tensor:
    """Mark the labels that are given: ``[B, C]`` to bool ``[B, C]``."""
    if task == "multilabel":
        return probabilities >= THRESHOLD
    return as_hot(probabilities.argmax(dim=1), probabilities.shape[1])


def as_hot(targets: Tensor, num_classes: int) -> Tensor:
    """Mark the true labels: classes ``[B]`` or multi-hot ``[B, C]`` to bool ``[B, C]``."""
    if targets.ndim == 2:
        return targets > 0.5
    return targets.unsqueeze(1) == torch.arange(num_classes, device=targets.device)


def confidence(probabilities: Tensor, task: Task) -> Tensor:
    """Say how probable the labels given are, and no others: ``[B, C]`` to ``[B]`` in [0, 1].

    With ``multilabel`` this is a product over all labels, as binary cross-entropy takes them
    for independent.
    """
    if task == "multiclass":
        return probabilities.amax(dim=1)
    return torch.maximum(probabilities, 1 - probabilities).prod(dim=1)


def read_answers(probabilities: Tensor, class_names: Sequence[str], task: Task) -> list[Answer]:
    """Put ``[B, C]`` into words, an answer per image."""
    numbers = probabilities.detach().cpu().double()
    rows = zip(
        decide(numbers, task).tolist(),
        confidence(numbers, task).tolist(),
        numbers.tolist(),
        strict=True,
    )
    return [
        Answer(
            labels=tuple(name for name, yes in zip(class_names, given, strict=True) if yes),
            probability=probability,
            probabilities=tuple(row),
        )
        for given, probability, row in rows
    ]
