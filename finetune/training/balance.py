"""What is done about classes of unequal size, from the counts of the training images.

``counts`` holds the training images of each class. A class without any counts as if it had one,
so that nothing is infinite.
"""

import math
from collections.abc import Sequence
from typing import Literal

from finetune.models.answers import Task

Balance = Literal["none", "sampler", "loss", "logit_adjustment"]
Monitor = Literal["accuracy", "balanced_accuracy", "mean_average_precision"]

IMBALANCED_RATIO = 2.0
"""From this ratio of the largest to the smallest class on, something is done."""
RARE_LABEL = 0.1
"""A label in a smaller share of the images is rare."""
MAX_POSITIVE_WEIGHT = 10.0
"""Larger weights of a rare label make the loss jump with each of its few images."""


def class_weights(counts: Sequence[int]) -> list[float]:
    """Weigh each class by the inverse of its share: ``n / (C * n_c)``.

    The mean weight over the training images is 1, so the learning rate fits as before.
    Source: King & Zeng 2001; scikit-learn's ``class_weight="balanced"``.
    """
    total, present = sum(counts), sum(count > 0 for count in counts)
    return [total / (present * max(1, count)) for count in counts]


def log_priors(counts: Sequence[int]) -> list[float]:
    """Give the logarithm of each class's share, for logit adjustment (Menon et al. 2021)."""
    total = sum(max(1, count) for count in counts)
    return [math.log(max(1, count) / total) for count in counts]


def positive_weights(counts: Sequence[int], num_images: int) -> list[float]:
    """Weigh the images that show a label so that they count as much as those that do not.

    ``(n - n_c) / n_c``, within 1/10 and 10.

    Args:
        counts: images that show each label.
        num_images: of the training, with or without labels.
    """
    weights = ((num_images - count) / max(1, count) for count in counts)
    return [min(MAX_POSITIVE_WEIGHT, max(1 / MAX_POSITIVE_WEIGHT, weight)) for weight in weights]


def choose_balance(counts: Sequence[int], *, task: Task, num_images: int) -> tuple[Balance, str]:
    """Decide what is done, and say why.

    One class per image: nothing where the largest class has less than twice the images of the
    smallest, else logit adjustment, which needs no tuning and no further time. Several: weights
    in the loss where a label is in less than a tenth of the images.

    Args:
        counts: training images of each class.
        task: whether an image has one class or any number.
        num_images: of the training.
    """
    if task == "multilabel":
        share = min(counts) / num_images
        reason = f"the rarest label is in {100 * share:.1f} % of the training images"
        return ("loss" if share < RARE_LABEL else "none"), reason
    ratio, reason = _compare(counts)
    return ("logit_adjustment" if ratio >= IMBALANCED_RATIO else "none"), reason


def choose_monitor(counts: Sequence[int], *, task: Task) -> tuple[Monitor, str]:
    """Decide which validation metric chooses the best checkpoint, and say why.

    Args:
        counts: training images of each class.
        task: whether an image has one class or any number.
    """
    if task == "multilabel":
        return "mean_average_precision", "it needs no threshold, and each label counts alike"
    if _compare(counts)[0] >= IMBALANCED_RATIO:
        return "balanced_accuracy", "the classes are of unequal size"
    return "accuracy", "the classes are of similar size"


def _compare(counts: Sequence[int]) -> tuple[float, str]:
    """Give the ratio of the largest to the smallest class, and say it."""
    ratio = max(counts) / max(1, min(counts))
    return ratio, (
        f"the largest class has {ratio:.1f} times the training images of the smallest: "
        f"{max(counts):,} and {min(counts):,}"
    )
