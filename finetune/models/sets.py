"""Prediction sets: the classes that may be true, so many that the true one is missed rarely.

Shapes: ``B`` images, ``C`` classes. One class per image alone (``multiclass``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def set_scores(probabilities: Tensor, *, penalty: float, free_ranks: int) -> Tensor:
    """Score how far down the ranking each class stands, ``[B, C]`` float64, >= 0; 0 is the best.

    The score of a class is the sum of the probabilities of all classes before it, plus
    ``penalty`` for each rank beyond ``free_ranks``. Equal probabilities rank in class order.

    Args:
        probabilities: ``[B, C]``, rows add up to 1.
        penalty: >= 0; the larger, the fewer sets are long.
        free_ranks: >= 1, so that the most probable class scores 0.

    Source: Romano et al. 2020, "Classification with valid and adaptive coverage" (APS), without
    its random numbers; the penalty is that of Angelopoulos et al. 2021 (RAPS).
    """
    numbers = probabilities.detach().cpu().double()
    ordered, order = numbers.sort(dim=1, descending=True, stable=True)
    # Summed up without the class itself: to subtract it again would leave rounding, after which a
    # class could score less than a more probable one.
    before = torch.zeros_like(ordered)
    before[:, 1:] = ordered[:, :-1].cumsum(dim=1)
    ranks = torch.arange(1, numbers.shape[1] + 1, dtype=torch.float64)
    scores = before + penalty * (ranks - free_ranks).clamp(min=0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def prediction_sets(
    probabilities: Tensor, *, limit: float, penalty: float, free_ranks: int
) -> Tensor:
    """Mark the classes that may be true: ``[B, C]`` to bool ``[B, C]``, never none of them.

    Args:
        probabilities: ``[B, C]``, rows add up to 1.
        limit: largest score of a class in the set, >= 0.
        penalty: see `set_scores`.
        free_ranks: see `set_scores`.
    """
    return set_scores(probabilities, penalty=penalty, free_ranks=free_ranks) <= limit


def read_sets(
    probabilities: Tensor,
    class_names: Sequence[str],
    *,
    limit: float,
    penalty: float,
    free_ranks: int,
) -> list[tuple[str, ...]]:
    """Name the classes that may be true, a set per image; the most probable class comes first.

    Args:
        probabilities: ``[B, C]``, rows add up to 1.
        class_names: ``C`` names; of equal probabilities, the first comes first.
        limit: see `prediction_sets`.
        penalty: see `set_scores`.
        free_ranks: see `set_scores`.
    """
    numbers = probabilities.detach().cpu()
    marked = prediction_sets(numbers, limit=limit, penalty=penalty, free_ranks=free_ranks)
    order = numbers.argsort(dim=1, descending=True, stable=True)
    return [
        tuple(class_names[index] for index in ranked[may_be].tolist())
        for ranked, may_be in zip(order, marked.gather(1, order), strict=True)
    ]
