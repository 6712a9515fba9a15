"""Heads: pooled features ``[B, F]`` in, logits ``[B, C]`` out.

Every head scripts with ``torch.jit.script``. The last layer of `linear` and `mlp` starts at
zero, so an untrained model gives every class the same probability and its first loss is
``ln(C)`` whatever the scale of the features; nothing large flows back into the backbone
while the head knows nothing. Source: Kolesnikov et al. 2020 (BiT), section 3.3.
"""

import math
from typing import Any, Literal, assert_never

from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import ConfigError

HeadName = Literal["linear", "mlp", "cosine"]


class LinearHead(nn.Module):
    """Logistic regression on the features, after dropout.

    Args:
        in_features: width F of the features, >= 1.
        num_classes: number of classes C, >= 2.
        dropout: probability to zero a feature in training, in [0, 1).

    Raises:
        ConfigError: an argument lies outside its range.
    """

    def __init__(self, in_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        _check_arguments(in_features, num_classes, dropout)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, num_classes)
        _zero(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        """Give logits ``[B, C]`` for features ``[B, F]``."""
        logits: Tensor = self.linear(self.dropout(features))
        return logits


class MlpHead(nn.Module):
    """One hidden GELU layer between features and classes.

    Worth its parameters where classes do not lie linearly in the features of a backbone that
    stays frozen; with the backbone open, `linear` is the better default.

    Args:
        in_features: width F of the features, >= 1.
        num_classes: number of classes C, >= 2.
        hidden_features: width of the hidden layer, >= 1.
        dropout: probability to zero a hidden feature in training, in [0, 1).

    Raises:
        ConfigError: an argument lies outside its range.

    Source: Hendrycks and Gimpel 2016 (GELU); Srivastava et al. 2014 (dropout).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_features: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_arguments(in_features, num_classes, dropout)
        if hidden_features < 1:
            raise ConfigError(
                f"head.hidden_features: got {hidden_features}, expected an integer >= 1."
            )
        self.hidden = nn.Linear(in_features, hidden_features)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_features, num_classes)
        _zero(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        """Give logits ``[B, C]`` for features ``[B, F]``."""
        hidden = self.dropout(self.activation(self.hidden(features)))
        logits: Tensor = self.linear(hidden)
        return logits


class CosineHead(nn.Module):
    """Logits are ``scale`` times the cosine between the features and one vector per class.

    Lengths cannot grow for frequent classes, which helps few-shot and long-tailed data. The
    scale is fixed, not learned: at 16 the cross-entropy of a perfect model can still fall
    below 1e-3 for up to 1,000 classes (Wang et al., proposition 2), and a learned one only
    adds overconfidence that temperature scaling takes out again. The class vectors start at
    random (normal, 0.01), since a vector of length zero has no direction.

    Args:
        in_features: width F of the features, >= 1.
        num_classes: number of classes C, >= 2.
        scale: what a cosine of 1 becomes as a logit, finite, > 0.
        dropout: probability to zero a feature in training, in [0, 1).

    Raises:
        ConfigError: an argument lies outside its range.

    Source: Wang et al. 2017 (NormFace); Gidaris and Komodakis 2018, who learn the scale.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        scale: float = 16.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_arguments(in_features, num_classes, dropout)
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"head.scale: got {scale}, expected a finite number > 0.")
        self.scale = float(scale)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, num_classes, bias=False)
        nn.init.normal_(self.linear.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Give logits ``[B, C]`` in [-scale, scale] for features ``[B, F]``."""
        directions = functional.normalize(self.dropout(features), dim=1)
        class_directions = functional.normalize(self.linear.weight, dim=1)
        return self.scale * functional.linear(directions, class_directions)


def create_head(
    name: HeadName, *, in_features: int, num_classes: int, **arguments: Any
) -> nn.Module:
    """Build the head ``name``.

    Args:
        name: `linear`, `mlp` or `cosine`.
        in_features: width F of the backbone's features, >= 1.
        num_classes: number of classes C, >= 2.
        arguments: the keyword arguments of that head's class.

    Raises:
        ConfigError: an argument lies outside its range.
    """
    match name:
        case "linear":
            return LinearHead(in_features, num_classes, **arguments)
        case "mlp":
            return MlpHead(in_features, num_classes, **arguments)
        case "cosine":
            return CosineHead(in_features, num_classes, **arguments)
        case _:
            assert_never(name)


def _check_arguments(in_features: int, num_classes: int, dropout: float) -> None:
    if in_features < 1:
        raise ConfigError(f"head.in_features: got {in_features}, expected an integer >= 1.")
    if num_classes < 2:
        raise ConfigError(f"head.num_classes: got {num_classes}, expected an integer >= 2.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"head.dropout: got {dropout}, expected a number in [0, 1).")


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
