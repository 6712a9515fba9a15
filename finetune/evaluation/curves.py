"""The points of ROC and precision–recall curves, so few that a page can draw them.

Shapes: ``N`` images.
"""

import torch
from torch import Tensor

Points = tuple[tuple[float, ...], tuple[float, ...]]
"""Of one length: what is drawn to the right, and what upwards."""


def roc_points(scores: Tensor, is_true: Tensor, max_points: int = 200) -> Points | None:
    """Give false positive rates and sensitivities by falling threshold, from (0, 0) to (1, 1).

    Args:
        scores: ``[N]``, higher for the class.
        is_true: bool ``[N]``.
        max_points: >= 2; corners beyond them are left out evenly along the curve.

    Returns:
        None where no image, or every image, is of the class.
    """
    tp, fp = _steps(scores, is_true)
    if not tp[-1] or not fp[-1]:
        return None
    x, y = fp / fp[-1], tp / tp[-1]
    return _thinned(x, y, x + y, max_points)


def precision_recall_points(
    scores: Tensor, is_true: Tensor, max_points: int = 200
) -> Points | None:
    """Give recalls and precisions by falling threshold; the precision of the first is drawn to 0.

    Args:
        scores: as for `roc_points`.
        is_true: likewise.
        max_points: likewise.

    Returns:
        None where no image, or every image, is of the class.
    """
    tp, fp = _steps(scores, is_true)
    if not tp[-1] or not fp[-1]:
        return None
    recall, precision = (tp / tp[-1])[1:], (tp / (tp + fp))[1:]
    x, y = torch.cat([torch.zeros(1), recall]), torch.cat([precision[:1], precision])
    along = torch.cat([torch.zeros(1), (x.diff().abs() + y.diff().abs()).cumsum(0)])
    return _thinned(x, y, along, max_points)


def _steps(scores: Tensor, is_true: Tensor) -> tuple[Tensor, Tensor]:
    """Count true and false positives above each threshold, from none to all; ties are one step."""
    if not len(scores) or scores.shape != is_true.shape:
        raise ValueError(
            f"scores and is_true: got {list(scores.shape)} and {list(is_true.shape)}, expected "
            "[N] of both, N >= 1."
        )
    ordered, order = scores.detach().cpu().double().sort(descending=True, stable=True)
    marks = is_true.cpu().bool()[order].double()
    is_last = torch.ones(len(ordered), dtype=torch.bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    zero = torch.zeros(1, dtype=torch.float64)
    tp, fp = marks.cumsum(0)[is_last], (1 - marks).cumsum(0)[is_last]
    return torch.cat([zero, tp]), torch.cat([zero, fp])


def _thinned(x: Tensor, y: Tensor, along: Tensor, max_points: int) -> Points:
    """Keep the points that are nearest to even distances along the curve, and both ends."""
    if max_points < 2:
        raise ValueError(f"max_points: got {max_points}, expected >= 2.")
    if len(x) > max_points:
        wanted = torch.linspace(0, float(along[-1]), max_points, dtype=along.dtype)
        places = torch.searchsorted(along.contiguous(), wanted).clamp(max=len(x) - 1)
        places[0], places[-1] = 0, len(x) - 1
        places = places.unique()
        x, y = x[places], y[places]
    return tuple(x.tolist()), tuple(y.tolist())
