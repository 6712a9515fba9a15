"""What ``model.json`` holds: plain values, checked one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from torch import Tensor

from finetune.errors import ModelError, RunError
from finetune.models.answers import Task
from finetune.models.sets import read_sets
from finetune.record import read_json

FORMAT_VERSION = 1
DECODE_POLICY: Literal[1] = 1


# What a model may ask for, so that a file of a few bytes cannot ask for all the memory.
MAX_IMAGE_SIZE_PX = 2048
MAX_CLASSES = 100_000
MIN_CROP_FRACTION = 0.1


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(_Plain):
    """A backbone by name, and the image size it was built for."""

    name: str
    image_size_px: int = Field(ge=1, le=MAX_IMAGE_SIZE_PX)


class Head(_Plain):
    """A head by name, with its arguments."""

    name: Literal["linear", "mlp", "cosine"]
    arguments: dict[str, float | int]


class PredictionSets(_Plain):
    """How the classes that may be true are found; see `finetune.models.sets.prediction_sets`.

    Attributes:
        coverage: share of images whose set should hold the true class.
        limit: largest score of a class in the set.
        penalty: added to the score for each rank beyond ``free_ranks``.
        free_ranks: ranks without penalty.
        images: that the limit was chosen on.
    """

    coverage: float = Field(gt=0, lt=1)
    limit: float = Field(ge=0, allow_inf_nan=False)
    penalty: float = Field(ge=0, allow_inf_nan=False)
    free_ranks: int = Field(ge=1, le=MAX_CLASSES)
    images: int = Field(ge=1)

    def read(self, probabilities: Tensor, class_names: Sequence[str]) -> list[tuple[str, ...]]:
        """Name the classes that may be true; see `finetune.models.sets.read_sets`."""
        return read_sets(
            probabilities,
            class_names,
            limit=self.limit,
            penalty=self.penalty,
            free_ranks=self.free_ranks,
        )


class Description(_Plain):
    """What ``model.json`` holds.

    Attributes:
        format_version: of this description; a newer one is refused.
        task: ``multiclass`` or ``multilabel``: what the probabilities mean.
        class_names: in the order of the outputs.
        backbone: which, and for which size.
        head: which, with its arguments.
        preprocessing: the settings of `finetune.data.preprocess.Preprocess`.
        max_megapixels: larger images are refused.
        decode_policy: version of the rules of `finetune.data.decode`.
        temperature: the logits are divided by it before they become probabilities.
        sets: how prediction sets are made; None where none were calibrated.
        abstain_below: less probable answers are better left to a person; None where that was not
            found out.
        weights_sha256: of the file of weights.
        metrics: of this model, by split.
        versions: of the libraries it was trained with.
        command: how it was trained.
    """

    format_version: Literal[1]
    task: Task
    class_names: list[str] = Field(min_length=2, max_length=MAX_CLASSES)
    backbone: Backbone
    head: Head
    preprocessing: dict[str, Any]
    max_megapixels: float = Field(gt=0)
    decode_policy: Literal[1] = DECODE_POLICY
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    sets: PredictionSets | None = None
    abstain_below: float | None = Field(None, gt=0, le=1)
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    metrics: dict[str, Any]
    versions: dict[str, str]
    command: str

    @field_validator("sets")
    @classmethod
    def _of_one_class_per_image(
        cls, sets: PredictionSets | None, info: ValidationInfo
    ) -> PredictionSets | None:
        if sets is not None and info.data.get("task") == "multilabel":
            raise ValueError("prediction sets are for one class per image")
        return sets

    @field_validator("preprocessing")
    @classmethod
    def _fits_in_memory(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key, least, most in (
            ("image_size_px", 1, MAX_IMAGE_SIZE_PX),
            ("crop_fraction", MIN_CROP_FRACTION, 1),
        ):
            value = values.get(key, least)
            if not isinstance(value, int | float) or not least <= value <= most:
                raise ValueError(f"{key} should be a number from {least:g} to {most:g}")
        return values


def read_description(path: Path) -> Description:
    """Read and check the file.

    Raises:
        ModelError: it cannot be read, is of a newer format, or holds anything else.
    """
    try:
        values = read_json(path)
    except RunError as error:
        raise ModelError(str(error)) from None
    return check_description(values, str(path))


def check_description(values: Any, where: str) -> Description:
    """Check what was parsed.

    Args:
        values: parsed JSON.
        where: it was found, for the message.

    Raises:
        ModelError: it is of a newer format, or holds anything else.
    """
    version = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelError(
            f"{where} has format version {version}; this finetune reads up to {FORMAT_VERSION}. "
            "Install a newer finetune."
        )
    try:
        return Description.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise ModelError(f"{where} is no model description: {key}: {first['msg']}.") from None
