"""The points of ROC and precision-recall curves, thinned for drawing.

Shapes: ``N`` images.
"""

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import Tensor

Points = tuple[tuple[float, ...], tuple[float, ...]]
"""x and y, of one length."""

Numbers = npt.NDArray[np.float64]


def roc_points(scores: Tensor, is_true: Tensor, max_points: int = 200) -> Points | None:
    """Give false positive rate and sensitivity, from (0, 0) to (1, 1).

    Args:
        scores: probability of the class, ``[N]``.
        is_true: ``[N]`` bool.
        max_points: kept at most, >= 4; the corners always are.

    Returns:
        None without an image of the class, or without another one.
    """
    if not is_true.any() or is_true.all():
        return None
    x, y, _ = roc_curve(is_true.cpu().numpy(), _numbers(scores), drop_intermediate=True)
    return _thinned(x, y, max_points)


def precision_recall_points(
    scores: Tensor, is_true: Tensor, max_points: int = 200
) -> Points | None:
    """Give recall and precision, from a recall of 0 to 1.

    At a recall of 0 the precision is that of the highest score, and not 1 by convention. The
    average precision is the area under steps: each precision holds back to the recall before it.

    Args:
        scores: as of `roc_points`.
        is_true: likewise.
        max_points: likewise.

    Returns:
        None without an image of the class, or without another one.
    """
    if not is_true.any() or is_true.all():
        return None
    precision, recall, _ = precision_recall_curve(
        is_true.cpu().numpy(), _numbers(scores), drop_intermediate=True
    )
    # scikit-learn goes from a recall of 1 down, and ends with a point that no threshold has.
    rising, precisions = recall[-2::-1], precision[-2::-1]
    return _thinned(
        np.concatenate([[0.0], rising]), np.concatenate([precisions[:1], precisions]), max_points
    )


def _numbers(scores: Tensor) -> Numbers:
    return np.asarray(scores.detach().cpu().double().numpy())


def _thinned(x: Numbers, y: Numbers, max_points: int) -> Points:
    """Keep both ends, and of the others those at about equal distances along the line."""
    if max_points < 4:
        raise ValueError(f"max_points: got {max_points}, expected at least 4.")
    if len(x) > max_points:
        way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        wanted = np.linspace(0, way[-1], max_points)
        kept = np.unique(np.append(np.searchsorted(way, wanted[:-1]), len(x) - 1))
        x, y = x[kept], y[kept]
    return tuple(x.tolist()), tuple(y.tolist())
