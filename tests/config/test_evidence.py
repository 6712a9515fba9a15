"""The settings of what is found out about a model."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune.config import TrainConfig
from finetune.errors import ConfigError
from finetune.validation import validate

Change = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("calibrate", [True, False], ["perhaps", None]),
        ("coverage", [None, 0.01, 0.99], [0, 1, "auto"]),
        ("max_error", [None, "auto", 0, 0.5], [1, -0.1, "half"]),
        ("min_sensitivity", [0.01, 1], [0, 1.1, None]),
        ("min_specificity", [0.01, 1], [0, 1.1, None]),
        ("resamples", [0, 100_000], [-1, 100_001, True]),
        ("pictures", [0, 100], [-1, 101]),
        ("report", [True, False], [None, 3]),
        ("gain", [True, False], [None, 3]),
    ],
)
def test_ranges(key: str, inside: list[Any], outside: list[Any], changed: Change) -> None:
    for value in inside:
        config = validate(TrainConfig, changed(**{f"evidence__{key}": value}))
        assert getattr(config.evidence, key) == value
    for value in outside:
        with pytest.raises(ConfigError, match=rf"^evidence\.{key}: got "):
            validate(TrainConfig, changed(**{f"evidence__{key}": value}))
