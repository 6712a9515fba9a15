"""``dataset=…`` and ``augmentation=…``: which images, and what is made of them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from finetune.config.types import (
    Auto,
    Balance,
    ExpandedPath,
    Group,
    MetricName,
    Number,
    Whole,
    Words,
    Workers,
)
from finetune.errors import did_you_mean

FINDINGS = (
    "unreadable",
    "too_large",
    "too_small",
    "constant",
    "wrong_suffix",
    "conflicting_labels",
    "near_conflicting_labels",
    "duplicates_across_splits",
    "near_duplicates_across_splits",
    "group_across_splits",
    "duplicates",
    "near_duplicates",
    "imbalance",
    "few_images",
    "missing_class",
    "no_groups",
    "mixed_modes",
    "skipped",
)
"""What an audit can find; ``data/README.md`` says what each means and what to do about it."""

DOWNLOADS = {"pneumonia_mnist": "data/medical"}
"""Where public images are put, and looked for, unless told otherwise."""

IMAGES_PER_FORMULA = 20
"""Classes are drawn by chance: with fewer images one of them might have none to train on."""


class DatasetConfig(Group):
    """``dataset=…``: which images, and how they are divided.

    Attributes:
        source: ``folder`` reads ``root`` or ``manifest``; ``digits`` first writes scikit-learn's
            digits to ``root``, ``formulas`` images that formulas draw, with a table of labels.
        formulas: what they draw; ``scenes`` show several things each, and need
            ``task=multilabel``.
        formula_classes: of each sort of shape or texture, or of compositions.
        formula_images: how many; at least 20 for each class.
        formula_side_px: of each.
        download: public images that ``finetune data`` fetches into ``root``; null for none.
        name: names the run's folder; null takes the name of ``root`` or of ``manifest``.
        root: ``root/<class>/…`` or ``root/{train,val,test}/<class>/…``; with a manifest, the
            folder that its paths begin in, null for the manifest's own. Without both, the folder
            of ``download``.
        manifest: a CSV or Parquet table with one row per image, instead of class folders.
        path_column: of the manifest.
        label_column: of the manifest.
        split_column: of the manifest; null takes ``split`` where there is one.
        group_column: of the manifest; null takes ``group`` where there is one.
        label_separator: between the labels of one image, with ``task=multilabel``.
        group_pattern: a regular expression; images in whose paths it captures the same (or
            matches the same, where it captures nothing) stay on one side of the split.
        expect_groups: warn where no group is given.
        split_file: a ``split.csv`` of an earlier run to divide the images by.
        val_fraction: share of each class held out for validation where the data has no ``val``.
        test_fraction: share of each class held out for a test where the data has no splits; 0
            for none.
        folds: number of folds for cross-validation, instead of ``val_fraction``; null for none.
        fold: the fold to validate on, from 0; ``all`` trains one model per fold.
        balance: what is done about unequal classes: ``sampler`` draws each class equally often,
            ``loss`` weighs rare classes more, ``logit_adjustment`` shifts the logits by the
            classes' shares (Menon et al. 2021); ``auto`` decides by the counts.
        monitor: the validation metric by which the best checkpoint is chosen; ``auto`` decides
            by the counts.
        metrics: shown after each epoch and written to ``metrics.csv``.
        color: ``rgb``, or ``grey`` for what has no colour (computed inside the model).
        accept: names of findings of the audit that shall not stop a training, or be warned of.
        min_side_px: images with a shorter side are reported.
        max_megapixels: a larger image is refused from its header.
        cache: keep decoded, reduced images for the next epochs in ``ram`` or on ``disk``.
        cache_gb: at most this much, in gigabytes (10^9 bytes).
        workers: processes that decode images.
    """

    source: Literal["folder", "digits", "formulas"]
    formulas: Literal["compositions", "fractals", "contours", "textures", "scenes"] | None
    formula_classes: Whole | None = Field(ge=2, le=10_000)
    formula_images: Whole | None = Field(ge=1000)
    formula_side_px: Whole | None = Field(ge=16, le=256)
    download: Literal["pneumonia_mnist"] | None
    name: str | None = Field(pattern=r"^[\w][\w .-]*$")
    root: ExpandedPath | None
    manifest: ExpandedPath | None
    path_column: str
    label_column: str
    split_column: str | None
    group_column: str | None
    label_separator: str = Field(min_length=1)
    group_pattern: str | None
    expect_groups: bool
    split_file: ExpandedPath | None
    val_fraction: Number = Field(gt=0, lt=1)
    test_fraction: Number = Field(ge=0, lt=1)
    folds: Whole | None = Field(ge=2, le=100)
    fold: Annotated[Whole, Field(ge=0)] | Literal["all"]
    balance: Balance | Literal["auto"]
    monitor: MetricName | Literal["loss", "auto"]
    metrics: Annotated[list[MetricName], Words, Field(min_length=1)]
    color: Literal["rgb", "grey"]
    accept: Annotated[list[str], Words]
    min_side_px: Whole = Field(ge=1)
    max_megapixels: Number = Field(gt=0)
    cache: Literal["none", "ram", "disk"]
    cache_gb: Number = Field(gt=0)
    workers: Workers

    @model_validator(mode="before")
    @classmethod
    def _looks_where_it_fetches(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("root") is values.get("manifest") is None:
            return {**values, "root": DOWNLOADS.get(str(values.get("download")))}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction:g} + test_fraction {self.test_fraction:g} "
                "leave nothing to train on; their sum must be < 1"
            )
        drawn = ("formulas", "formula_classes", "formula_images", "formula_side_px")
        missing = [name for name in drawn if getattr(self, name) is None]
        if self.source == "formulas" and missing:
            raise ValueError(f"source formulas needs {' and '.join(missing)}")
        least = IMAGES_PER_FORMULA * (self.formula_classes or 0)
        if self.source == "formulas" and (self.formula_images or 0) < least:
            raise ValueError(
                f"formula_images: got {self.formula_images}, expected at least {least}, "
                f"{IMAGES_PER_FORMULA} for each of formula_classes={self.formula_classes}"
            )
        if self.folds is None and self.fold != 0:
            raise ValueError(f"fold: got {self.fold}, but folds is null; set dataset.folds=5")
        if self.folds is not None and self.fold != "all" and self.fold >= self.folds:
            raise ValueError(
                f"fold: got {self.fold}, expected 0 to {self.folds - 1} (folds={self.folds}) or all"
            )
        if self.folds is not None and self.split_file is not None:
            raise ValueError("folds and split_file both divide the images; give one of them")
        return self

    @field_validator("group_pattern")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"got {value!r}, no regular expression: {error}") from None
        return value

    @field_validator("accept")
    @classmethod
    def _are_findings(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in FINDINGS:
                raise ValueError(
                    f"got {name!r}, expected some of {', '.join(FINDINGS)}."
                    f"{did_you_mean(name, FINDINGS)}"
                )
        return value


class AugmentationConfig(Group):
    """``augmentation=…``: Albumentations transforms of a training image, in order.

    Attributes:
        transforms: each ``{name: <Albumentations class>, <argument>: <value>, …}``; ``auto`` takes
            those of the option that the recipe chooses. The value ``image_size_px`` stands
            for the image size of the model.
        random_erasing: probability that a rectangle of a training image is filled with noise
            (Zhong et al. 2020), after the transforms.
        mixup_alpha: mix pairs of images and their labels (Zhang et al. 2018); the parameter of
            the Beta distribution of their shares, 0 for no mixup, ``auto`` for the recipe's.
        cutmix_alpha: paste a rectangle of another image (Yun et al. 2019); 0 for no cutmix. With
            both, each batch takes one of them by chance.
    """

    transforms: list[dict[str, Any]] | Auto
    random_erasing: Number = Field(ge=0, le=1)
    mixup_alpha: Annotated[Number, Field(ge=0)] | Auto
    cutmix_alpha: Number = Field(ge=0)
