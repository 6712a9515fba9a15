"""The probe: regularised logistic regression on features, its strength chosen by cross-validation.

Shapes: ``N`` images, ``F`` features, ``C`` classes. Targets are classes ``[N]`` int64, or with
``multilabel`` multi-hot ``[N, C]`` float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.data.discover import Sample
from finetune.data.stratify import deal_folds
from finetune.data.units import make_units
from finetune.models.answers import Task, as_hot, to_probabilities
from finetune.training.logistic import Logistic, Solution

STRENGTHS = tuple(10.0**power for power in (4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0, -1))
"""From strong to weak."""
DEFAULT_STRENGTH = 100.0
"""Where there are too few images to choose one."""
PATIENCE = 2
"""Strengths in a row worse than the best, after which weaker ones, which take longer, are left."""
MAX_SWEEP_IMAGES = 20_000
"""More would choose the same strength, but take longer."""
ENOUGH_HELD_OUT = 3_000
"""Validated images that tell the strengths apart; folds beyond them are left out."""

_SWEEP_TOLERANCE = 2e-4
_FOLD_TOLERANCE = 1e-6
_TOLERANCE = 1e-7
_CONVERGED = 1e-5


@dataclass(frozen=True)
class Probe:
    """A linear classifier: the logits of a feature ``f`` are ``weight @ f + bias``.

    Attributes:
        weight: ``[C, F]`` float32, for features as they are.
        bias: ``[C]`` float32.
        strength: of the L2 penalty ``strength / 2 * |w|^2``, beside the sum of the images' losses;
            ``1 / strength`` is scikit-learn's ``C``.
        curve: strength and mean cross-validated loss in nats, from strong to weak; empty where
            there were too few images, or only one strength to choose from.
        folds: of the cross-validation; 0 without.
        iterations: of the last fit.
        is_converged: whether the gradient of its mean loss is as good as zero.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    curve: tuple[tuple[float, float], ...]
    folds: int
    iterations: int
    is_converged: bool


def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    task: Task,
    seed: int,
    groups: Sequence[int] | None = None,
    folds: int = 5,
    strengths: Sequence[float] | None = None,
    class_weights: Sequence[float] | None = None,
    log_priors: Sequence[float] | None = None,
) -> Probe:
    """Fit a linear classifier to features, and choose how strongly it is regularised.

    Softmax regression with ``multiclass``, a logistic regression per label with ``multilabel``.
    Features are standardised within; the penalty is on the weights so scaled, never on the bias.
    The strength is that with the least cross-validated loss, which is the loss that is fitted:
    with its class weights and priors.

    A class without images gets no weights and a bias that makes it as rare as one image in
    ``N + 1``; likewise a label that no image, or every image, shows.

    The same arguments give the same result on the same machine.

    Args:
        features: ``[N, F]`` float32, finite, N >= 1.
        targets: see above.
        num_classes: ``C``.
        task: what the logits mean.
        seed: of the folds.
        groups: ``N`` numbers; images of the same one are never parted by a fold.
        folds: >= 2; fewer where there are fewer images or groups. A class keeps an image to
            train on in each, so a class of one image is validated in none.
        strengths: > 0; None takes ``STRENGTHS``. A single one is taken without validation.
        class_weights: as for `finetune.training.losses.create_loss`.
        log_priors: likewise; added to the logits while fitting, not part of the bias.

    Source: Kornblith et al. 2019, "Do better ImageNet models transfer better?", for the sweep.
    """
    _check_groups(features, groups)
    path = sorted(set(STRENGTHS if strengths is None else strengths), reverse=True)
    create = partial(
        Logistic,
        num_classes=num_classes,
        task=task,
        class_weights=class_weights,
        log_priors=log_priors,
    )
    strength = min(path, key=lambda value: abs(math.log(value / DEFAULT_STRENGTH)))
    start: Solution | None = None
    curve: list[tuple[float, float]] = []
    held_out = np.zeros((0, 0), bool)
    if len(path) > 1:
        chosen = _choose_images(targets, num_classes, seed)
        held_out = _hold_out(
            targets[chosen], None if groups is None else [groups[i] for i in chosen], folds, seed
        )
    if held_out.any():
        subsets = torch.from_numpy(~held_out)
        problem = create(features[chosen], targets[chosen], dtype=torch.float32, subsets=subsets)
        curve, strength, start = _sweep(problem, path)
    solution = create(features, targets).solve(strength, tolerance=_TOLERANCE, start=start)
    return Probe(
        weight=solution.weight[0].float(),
        bias=solution.bias[0].float(),
        strength=strength,
        curve=tuple(curve),
        folds=held_out.shape[1],
        iterations=solution.iterations,
        is_converged=solution.gradient <= _CONVERGED,
    )


def out_of_fold_probabilities(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    task: Task,
    strength: float,
    seed: int,
    groups: Sequence[int] | None = None,
    folds: int = 5,
    class_weights: Sequence[float] | None = None,
    log_priors: Sequence[float] | None = None,
) -> Tensor:
    """Say of each image what a probe that never saw it says: what its label is judged by.

    The folds share one fit; features are standardised by all images, as they come without labels.
    The same arguments give the same result on the same machine.

    Args:
        features: as for `fit_probe`.
        targets: likewise.
        num_classes: ``C``.
        task: what the logits mean.
        strength: of the penalty, > 0: the one that `fit_probe` chose.
        seed: of the folds.
        groups: as for `fit_probe`.
        folds: likewise.
        class_weights: likewise.
        log_priors: likewise; the probabilities are without them, as the model's are.

    Returns:
        ``[N, C]`` float32 in [0, 1]. A row is NaN where no fold can do without the image: it is
        the only one of its class, or its group the only one.
    """
    _check_groups(features, groups)
    probabilities = torch.full((len(features), num_classes), torch.nan)
    held_out = _deal(targets, groups, folds, seed)
    if not held_out.any():
        return probabilities
    problem = Logistic(
        features,
        targets,
        num_classes=num_classes,
        task=task,
        subsets=torch.from_numpy(~held_out),
        class_weights=class_weights,
        log_priors=log_priors,
    )
    solution = problem.solve(strength, tolerance=_FOLD_TOLERANCE)
    for weight, bias, fold in zip(solution.weight, solution.bias, held_out.T, strict=True):
        rows = torch.from_numpy(fold)
        logits = features[rows].double() @ weight.T + bias
        probabilities[rows] = to_probabilities(logits, task)
    return probabilities


def _check_groups(features: Tensor, groups: Sequence[int] | None) -> None:
    if groups is not None and len(groups) != len(features):
        raise ValueError(f"groups: got {len(groups)} of {len(features)} images.")


def _sweep(
    problem: Logistic, path: Sequence[float]
) -> tuple[list[tuple[float, float]], float, Solution | None]:
    """Follow the strengths from strong to weak; return the curve, the best, and its solution."""
    held_out = 1 - problem.subsets
    curve: list[tuple[float, float]] = []
    solution: Solution | None = None
    best, since = (math.inf, path[0], solution), 0
    for strength in path:
        solution = problem.solve(strength, tolerance=_SWEEP_TOLERANCE, start=solution)
        loss = float((problem.losses(solution) * held_out).sum() / held_out.sum())
        curve.append((strength, loss))
        since += 1
        if loss < best[0]:
            best, since = (loss, strength, solution), 0
        if since == PATIENCE:
            break
    return curve, best[1], best[2]


def _choose_images(targets: Tensor, num_classes: int, seed: int) -> list[int]:
    """Choose at most ``MAX_SWEEP_IMAGES``, in each class its share.

    Of several labels, an image's rarest counts.
    """
    count = len(targets)
    if count <= MAX_SWEEP_IMAGES:
        return list(range(count))
    shown = as_hot(targets, num_classes)
    rarest = torch.where(shown, shown.sum(0), count + 1).argmin(1).numpy()
    order = np.lexsort([np.random.default_rng(seed).permutation(count), rarest])
    places = np.arange(MAX_SWEEP_IMAGES) * count // MAX_SWEEP_IMAGES
    return sorted(order[places].tolist())


def _hold_out(
    targets: Tensor, groups: Sequence[int] | None, folds: int, seed: int
) -> npt.NDArray[np.bool_]:
    """Mark the images that each fold validates, ``[N, K]``, with as many folds as it takes."""
    held_out = _deal(targets, groups, folds, seed)
    enough = np.flatnonzero(held_out.sum(0).cumsum() >= ENOUGH_HELD_OUT)
    return held_out[:, : enough[0] + 1] if len(enough) else held_out


def _deal(
    targets: Tensor, groups: Sequence[int] | None, folds: int, seed: int
) -> npt.NDArray[np.bool_]:
    """Mark the images of each fold, ``[N, K]``: all images; folds without any are left out."""
    count = len(targets)
    labels = [
        [row] if isinstance(row, int) else np.flatnonzero(row).tolist() for row in targets.tolist()
    ]
    samples = [
        # Sorted by path, as units want them.
        Sample(
            f"{i:09}", tuple(map(str, labels[i])), None, None if groups is None else str(groups[i])
        )
        for i in range(count)
    ]
    units = make_units(samples, (), seed=seed)
    places = deal_folds(units, min(folds, len(units)))
    held_out = np.zeros((count, folds), bool)
    for unit, place in zip(units, places, strict=True):
        if place is not None:
            held_out[list(unit.members), place] = True
    return held_out[:, held_out.any(0)]
