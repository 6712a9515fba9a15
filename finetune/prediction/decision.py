"""From probabilities to what is said: the threshold of a label, and when to say nothing.

Without a threshold, `finetune.models.answers` decides. With one, ``multilabel`` gives each label
that is at least so probable; of two classes, the second is given where it is at least so probable,
else the first. More classes have no threshold: there, the most probable one is given.

A prediction set knows nothing of the threshold: it holds the classes that are probable enough, and
the class that a threshold gives may lie outside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.errors import ConfigError
from finetune.models.answers import Answer, Task, read_answers

SetReader = Callable[[Tensor, Sequence[str]], list[tuple[str, ...]]]
"""Probabilities ``[B, C]`` and ``C`` names to the classes that may be true, image by image."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How answers are read.

    Attributes:
        class_names: ``C`` names in the order of the model's outputs.
        task: what the probabilities mean.
        threshold: of a label, in (0, 1); None for what `finetune.models.answers` does.
        abstain: less probable answers are marked, in (0, 1]; None marks none.
        sets: how the classes that may be true are found; None where nobody asked.

    Raises:
        ConfigError: there is a threshold for more than two classes.
    """

    class_names: tuple[str, ...]
    task: Task
    threshold: float | None = None
    abstain: float | None = None
    sets: SetReader | None = None

    def __post_init__(self) -> None:
        """Refuse a threshold that means nothing."""
        count = len(self.class_names)
        if self.threshold is not None and self.task == "multiclass" and count != 2:
            raise ConfigError(
                f"threshold: got {self.threshold:g} for a model of {count} classes, expected two "
                "classes, or several labels to an image. To leave improbable answers out, use "
                "abstain=PROBABILITY."
            )

    def abstains(self, probability: float) -> bool | None:
        """Tell whether an answer is too improbable; None where nobody asked."""
        return None if self.abstain is None else probability < self.abstain


def read_decided(probabilities: Tensor, decision: Decision) -> list[Answer]:
    """Put ``[B, C]`` into words, an answer per image.

    The probability of an answer is that of its labels and no others: of two classes, that of the
    class given, which with a threshold may be the less probable one.
    """
    if decision.threshold is None:
        return read_answers(probabilities, decision.class_names, decision.task)
    numbers = probabilities.detach().cpu().double()
    # As float32, so that a probability that is written as 0.7 reaches a threshold of 0.7.
    threshold = torch.tensor(decision.threshold, dtype=torch.float32).double()
    given = numbers >= threshold
    if decision.task == "multiclass":
        given[:, 0] = ~given[:, 1]
        certainty = numbers[given]
    else:
        certainty = torch.where(given, numbers, 1 - numbers).prod(dim=1)
    names = decision.class_names
    return [
        Answer(
            labels=tuple(name for name, yes in zip(names, marks, strict=True) if yes),
            probability=probability,
            probabilities=tuple(row),
        )
        for marks, probability, row in zip(
            given.tolist(), certainty.tolist(), numbers.tolist(), strict=True
        )
    ]


def read_decided_sets(
    probabilities: Tensor, decision: Decision
) -> Sequence[tuple[str, ...] | None]:
    """Name the classes that may be true of ``[B, C]``; None for each image where nobody asked."""
    if decision.sets is None:
        return [None] * len(probabilities)
    return decision.sets(probabilities, decision.class_names)
