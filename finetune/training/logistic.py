"""Logistic regression with an L2 penalty, on several subsets of the same images at once.

Shapes: ``N`` images, ``F`` features, ``C`` classes, ``K`` subsets, ``R`` = min(N, F) directions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from finetune.models.answers import Task, as_hot

_CHUNK = 1 << 21
"""Numbers of one array that are computed at once."""
_MAX_ITERATIONS = 1000
_MIN_CURVATURE = 1e-5
_HIDE = 1e4
_CURVATURE_IMAGES = 500


@dataclass(frozen=True)
class Solution:
    """Where the penalised loss is least.

    Attributes:
        weight: ``[K, C, F]`` float64, for features as they are.
        bias: ``[K, C]`` float64.
        iterations: of L-BFGS.
        gradient: largest absolute derivative of the mean loss with its penalty, by any weight (of
            standardised features) or bias.
    """

    weight: Tensor
    bias: Tensor
    iterations: int
    gradient: float


class Logistic:
    """The sum of the images' losses plus ``strength / 2 * |w|^2``, to be made small.

    The weights of the penalty are those of standardised features. L-BFGS sees them along the
    principal directions of the features, each scaled by what the curvature of the loss is about
    there. The subsets share one run: the features are read once for all.

    A class that a subset lacks (a label that none or all of its images show) has no least loss:
    its weights stay zero and its bias a finite number, and the other classes do not see it.

    Args:
        features: ``[N, F]`` float32.
        targets: classes ``[N]`` int64, or multi-hot ``[N, C]`` float32.
        num_classes: ``C``.
        task: softmax with ``multiclass``, a logistic function per label with ``multilabel``.
        dtype: of the sums over images; float64, or float32 at twice the speed.
        subsets: ``[N, K]``, 1 where an image belongs to a subset, else 0; None is one of all.
        class_weights: ``C`` factors, as for `finetune.training.losses.create_loss`.
        log_priors: ``C`` summands of the logits, likewise; not part of the bias.
    """

    def __init__(
        self,
        features: Tensor,
        targets: Tensor,
        *,
        num_classes: int,
        task: Task,
        dtype: torch.dtype = torch.float64,
        subsets: Tensor | None = None,
        class_weights: Sequence[float] | None = None,
        log_priors: Sequence[float] | None = None,
    ) -> None:
        self.features = features
        self.targets = targets
        self.task = task
        self.dtype = dtype
        self.subsets = torch.ones(len(features), 1) if subsets is None else subsets.float()
        ones, zeros = [1.0] * num_classes, [0.0] * num_classes
        self.class_weights = torch.tensor(ones if class_weights is None else class_weights).to(
            dtype
        )
        self.log_priors = torch.tensor(zeros if log_priors is None else log_priors).to(dtype)
        self.shape = (self.subsets.shape[1], num_classes)
        self.mean, self.std, self.variances, self.directions = principal_directions(features)
        self._first_bias, self._is_fixed, is_unseen = self._look_at_classes()
        # Else the biases of the others would grow without end, to make it rarer still.
        self._offsets = self.log_priors + torch.zeros(self.shape).masked_fill(is_unseen, -_HIDE)
        self._offsets = self._offsets.to(dtype)

    def solve(
        self, strength: float, *, tolerance: float, start: Solution | None = None
    ) -> Solution:
        """Find the least of the loss, for every subset.

        Args:
            strength: of the penalty, > 0.
            tolerance: of the derivatives by the scaled weights, at which to stop.
            start: the solution for another strength; the mean of its subsets where these differ.
        """
        penalty, rank = strength / len(self.features), len(self.variances)
        weight, bias = self._standardise(start)
        curvature = self._curvature(weight, bias)
        scale = torch.cat([curvature * self.variances + penalty, torch.tensor([curvature])])
        scale = scale.to(torch.float64).rsqrt().unsqueeze(1)
        along = torch.cat([self.directions.T @ weight, bias.unsqueeze(0)])
        point = (along / scale).requires_grad_()
        gradient = 0.0

        def unscale() -> tuple[Tensor, Tensor]:
            along = scale * point.detach()
            return self.directions @ along[:rank], along[rank]

        def evaluate() -> Tensor:
            nonlocal gradient
            weight, bias = unscale()
            loss, by_weight, by_bias = self._differentiate(weight, bias)
            by_weight.add_(weight, alpha=penalty)
            gradient = max(float(by_weight.abs().max()), float(by_bias.abs().max()))
            along = torch.cat([self.directions.T @ by_weight, by_bias.unsqueeze(0)])
            point.grad = scale * along
            return loss + penalty / 2 * weight.square().sum()

        iterations = _minimise(point, evaluate, tolerance)
        evaluate()
        raw, raw_bias = self._for_raw_features(*unscale())
        return Solution(
            raw.T.reshape(*self.shape, -1), raw_bias.reshape(self.shape), iterations, gradient
        )

    def losses(self, solution: Solution) -> Tensor:
        """Give each image's loss under each subset's solution, ``[N, K]`` in nats.

        It is the loss that is fitted, without the penalty; with ``multilabel``, the mean over the
        labels.
        """
        raw, raw_bias = solution.weight.flatten(0, 1).T, solution.bias.flatten()
        return torch.cat(
            [
                self._image_losses(self._logits(rows, raw, raw_bias), rows)[0]
                for rows in self._chunks()
            ]
        )

    def _differentiate(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the mean loss, and its derivatives by ``[F, K * C]`` and ``[K * C]``."""
        raw, raw_bias = self._for_raw_features(weight, bias)
        total = torch.zeros((), dtype=torch.float64)
        by_raw, by_bias = torch.zeros_like(raw), torch.zeros_like(raw_bias)
        labels = 1 if self.task == "multiclass" else self.shape[1]
        for rows in self._chunks():
            losses, by_logit = self._image_losses(self._logits(rows, raw, raw_bias), rows)
            members = self.subsets[rows].to(self.dtype)
            total += (losses * members).sum(dtype=torch.float64) * labels
            by_logit = (by_logit * members.unsqueeze(2)).flatten(1)
            # Up to ten times as fast as features.T @ by_logit, whose product is the same.
            by_raw += (by_logit.T @ self.features[rows].to(self.dtype)).T
            by_bias += by_logit.sum(0)
        by_bias.masked_fill_(self._is_fixed, 0)
        by_weight = (by_raw - torch.outer(self.mean, by_bias)) / self.std.unsqueeze(1)
        by_weight.masked_fill_(self._is_fixed, 0)
        count = len(self.features)
        return total / count, by_weight / count, by_bias / count

    def _image_losses(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Give each image's loss ``[n, K]``, and the derivatives of their sums ``[n, K, C]``.

        With ``multilabel``, the loss is the mean over the labels, the derivative of each label's.
        """
        logits = logits + self._offsets
        targets = self.targets[rows]
        if self.task == "multiclass":
            places = targets.view(-1, 1, 1).expand(-1, self.shape[0], 1)
            log_shares = functional.log_softmax(logits, dim=2)
            weights = self.class_weights[targets].unsqueeze(1)
            losses = -log_shares.gather(2, places).squeeze(2) * weights
            by_logit = log_shares.exp_()
            by_logit.scatter_add_(2, places, torch.full_like(places, -1, dtype=self.dtype))
            return losses, by_logit.mul_(weights.unsqueeze(2))
        shown = targets.to(self.dtype).unsqueeze(1)
        weights = 1 + (self.class_weights - 1) * shown
        losses = functional.softplus(logits) * weights - self.class_weights * shown * logits
        return losses.mean(2), logits.sigmoid() * weights - self.class_weights * shown

    def _logits(self, rows: slice, raw: Tensor, raw_bias: Tensor) -> Tensor:
        features = self.features[rows].to(self.dtype)
        # Each column in one piece: two to five times as fast for a few classes.
        columns = raw.to(self.dtype).T.contiguous().T
        logits = torch.addmm(raw_bias.to(self.dtype), features, columns)
        return logits.view(-1, *self.shape)

    def _chunks(self) -> Iterator[slice]:
        count, columns = self.features.shape
        size = max(1, _CHUNK // max(columns, self.shape[0] * self.shape[1]))
        return (slice(first, first + size) for first in range(0, count, size))

    def _curvature(self, weight: Tensor, bias: Tensor) -> float:
        """Estimate the mean second derivative of an image's loss by a logit."""
        rows = slice(None, None, -(-len(self.features) // _CURVATURE_IMAGES))
        logits = self._logits(rows, *self._for_raw_features(weight, bias)) + self._offsets
        shares = logits.softmax(2) if self.task == "multiclass" else logits.sigmoid()
        return max(_MIN_CURVATURE, float((shares * (1 - shares)).mean()))

    def _standardise(self, start: Solution | None) -> tuple[Tensor, Tensor]:
        """Give the weights ``[F, K * C]`` and biases ``[K * C]`` to start from."""
        columns = self.shape[0] * self.shape[1]
        weight = torch.zeros(len(self.mean), columns, dtype=torch.float64)
        if start is None:
            return weight, self._first_bias
        raw, raw_bias = start.weight, start.bias
        if raw.shape[0] != self.shape[0]:
            raw, raw_bias = (
                part.mean(0).expand(self.shape[0], *part.shape[1:]) for part in (raw, raw_bias)
            )
        raw = raw.flatten(0, 1).T
        bias = torch.where(self._is_fixed, self._first_bias, raw_bias.flatten() + self.mean @ raw)
        return (raw * self.std.unsqueeze(1)).masked_fill(self._is_fixed, 0), bias

    def _for_raw_features(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        raw = weight / self.std.unsqueeze(1)
        return raw, bias - self.mean @ raw

    def _look_at_classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give each bias to start from, whether it must stay there ``[K * C]``, and is unseen."""
        shown = as_hot(self.targets, self.shape[1]).double()
        counts = self.subsets.double().T @ shown
        sizes = self.subsets.double().sum(0).unsqueeze(1)
        if self.task == "multilabel":
            is_fixed = (counts == 0) | (counts == sizes)
            bias = ((counts + 1) / (sizes - counts + 1)).log()
            return bias.flatten(), is_fixed.flatten(), torch.zeros_like(is_fixed)
        is_present = counts > 0
        is_fixed = ~is_present | (is_present.sum(1, keepdim=True) < 2)
        bias = torch.where(is_present, counts, 1).div(sizes + 1).log()
        return bias.flatten(), is_fixed.flatten(), ~is_present


def principal_directions(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find along which directions standardised features vary, and how much.

    Args:
        features: ``[N, F]``.

    Returns:
        Mean and standard deviation ``[F]`` of each feature, 1 where it is constant; variances
        ``[R]`` >= 0, and the orthonormal directions ``[F, R]`` that have them; all in float64.
    """
    count, width = features.shape
    mean = features.mean(0, dtype=torch.float64)
    size = max(1, _CHUNK // width)
    parts = [features[first : first + size] for first in range(0, count, size)]
    std = torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0)
    std = (std / count).sqrt()
    # A mean of equal numbers is off by their rounding.
    std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)
    if count < width:
        _, values, rows = torch.linalg.svd((features.double() - mean) / std, full_matrices=False)
        return mean, std, values.square() / count, rows.T.contiguous()
    products = torch.zeros(width, width, dtype=torch.float64)
    for part in parts:
        scaled = (part.double() - mean) / std
        products.addmm_(scaled.T, scaled)
    variances, directions = torch.linalg.eigh(products / count)
    return mean, std, variances.clamp(min=0), directions


def _minimise(point: Tensor, evaluate: Callable[[], Tensor], tolerance: float) -> int:
    """Move a point to where its gradient is at most ``tolerance``; return the steps it took."""
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=_MAX_ITERATIONS,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(lambda: float(evaluate()))  # type: ignore[no-untyped-call]
    return int(optimizer.state[point]["n_iter"])
