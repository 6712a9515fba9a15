"""What the fields of several groups are made of."""

import os.path
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError


def expand_home(path: Path) -> Path:
    """Put the home folder for ``~`` and ``~user``; a name such as ``~backup`` stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own fails without that user


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("got nothing, expected a file or folder")
    return value


ExpandedPath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(expand_home)]
"""A file or folder; ``~`` stands for the home folder. ``cli`` takes such a value literally."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take early_stopping_patience=true for 1
        raise PydanticKnownError("float_type")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) and value else value


Number = Annotated[float, BeforeValidator(_no_bool)]
Whole = Annotated[int, BeforeValidator(_no_bool)]
Fraction = Annotated[Number, Field(gt=0, le=1)]
Auto = Literal["auto"]
"""Left to the recipe, which looks at the images, the backbone and the machine."""
Find = Literal["find"]
"""Found by trying, before the training."""
Workers = Annotated[Whole, Field(ge=0, le=256)] | Literal["auto"]
"""Processes that decode images; 0 decodes in the main process, ``auto`` follows the cores."""

MetricName = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "sensitivity",
    "specificity",
    "mean_average_precision",
]
Words = BeforeValidator(_as_list)
"""In front of a list of words: one alone needs no brackets."""
Balance = Literal["none", "sampler", "loss", "logit_adjustment"]
Task = Literal["multiclass", "multilabel"]
SplitName = Literal["train", "val", "test"]


_Value = TypeVar("_Value", int, float)


def settled(value: _Value | Auto | Find) -> _Value:
    """Take a value that has been put in place of ``auto`` or ``find``.

    Raises:
        ValueError: it is still one of these, so `finetune.commands.settle` was left out.
    """
    if value == "auto" or value == "find":
        raise ValueError(f"got {value}, expected a number: settle the config first")
    return value


class Group(BaseModel):
    """Settings that are complete, known by name, and never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )
