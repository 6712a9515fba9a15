"""Which images a person should look at: pure choices among those that were measured.

Shapes: ``N`` images, ``C`` classes.
"""

from collections.abc import Mapping

from torch import Tensor


def sure_mistakes(sure: Tensor, is_right: Tensor, *, count: int) -> list[int]:
    """Choose the wrong answers with the highest probability, highest first.

    Args:
        sure: ``[N]``, probability of the answer.
        is_right: bool ``[N]``.
        count: at most so many.
    """
    return _first((-sure).masked_fill(is_right, float("inf")), int((~is_right).sum()), count)


def doubts(sure: Tensor, *, count: int) -> list[int]:
    """Choose the answers with the lowest probability, lowest first, right or wrong: ``[N]``."""
    return _first(sure, len(sure), count)


def sure_and_right(sure: Tensor, is_right: Tensor, targets: Tensor, *, count: int) -> list[int]:
    """Choose the right answers with the highest probability, each class in turn.

    Args:
        sure: ``[N]``, probability of the answer.
        is_right: bool ``[N]``.
        targets: classes ``[N]``, or multi-hot ``[N, C]``, whose first label counts.
        count: at most so many.
    """
    classes = targets if targets.ndim == 1 else targets.argmax(1)
    by_class: dict[int, list[int]] = {}
    for index in (-sure).argsort(stable=True).tolist():
        if is_right[index]:
            by_class.setdefault(int(classes[index]), []).append(index)
    queues = [by_class[key] for key in sorted(by_class)]
    turns = ([queue[turn] for queue in queues if turn < len(queue)] for turn in range(count))
    return [index for turn in turns for index in turn][:count]


def cell_members(
    truths: Tensor, given: Tensor, sure: Tensor, *, wrong: int, right: int, total: int
) -> Mapping[tuple[int, int], tuple[int, ...]]:
    """Choose images of each cell of the confusion matrix, the surest first.

    Args:
        truths: classes ``[N]``.
        given: classes ``[N]``.
        sure: ``[N]``, probability of the answer.
        wrong: at most so many of a cell off the diagonal.
        right: at most so many of a cell on it.
        total: at most so many of all; every cell off the diagonal gets its first before any gets
            its second, and the diagonal comes last.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for index in (-sure).argsort(stable=True).tolist():
        members.setdefault((int(truths[index]), int(given[index])), []).append(index)
    off = sorted((cell for cell in members if cell[0] != cell[1]), key=lambda c: -len(members[c]))
    on = sorted(cell for cell in members if cell[0] == cell[1])
    chosen: dict[tuple[int, int], list[int]] = {}
    left = total
    for cells, most in ((off, wrong), (on, right)):
        for turn in range(most):
            for cell in cells:
                if left and turn < len(members[cell]):
                    chosen.setdefault(cell, []).append(members[cell][turn])
                    left -= 1
    return {cell: tuple(indices) for cell, indices in chosen.items()}


def _first(keys: Tensor, most: int, count: int) -> list[int]:
    chosen: list[int] = keys.argsort(stable=True)[: min(most, count)].tolist()
    return chosen
