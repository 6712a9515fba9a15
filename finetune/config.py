"""The whole vocabulary of the tool: one model per config group, each field with unit and range.

The values live in ``conf/`` (YAML, composed by Hydra in ``cli``); the types, ranges and rules
live here. Nothing has a default in both places: a key that a YAML file forgets is an error.
"""

import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
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


Number = Annotated[float, BeforeValidator(_no_bool)]
Whole = Annotated[int, BeforeValidator(_no_bool)]
Fraction = Annotated[Number, Field(gt=0, le=1)]
Workers = Annotated[Whole, Field(ge=0, le=256)] | Literal["auto"]
"""Processes that decode images; 0 decodes in the main process, ``auto`` follows the cores."""

Monitor = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]
SplitName = Literal["train", "val", "test"]


class Group(BaseModel):
    """Settings that are complete, known by name, and never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


class DatasetConfig(Group):
    """``dataset=…``: which images, and how they are divided.

    Attributes:
        source: ``folder`` reads ``root``; ``digits`` first writes scikit-learn's digits there.
        name: names the run's folder; null takes the name of ``root``.
        root: ``root/<class>/…`` or ``root/{train,val,test}/<class>/…``.
        val_fraction: share of each class held out for validation where the folder has no ``val``.
        test_fraction: share of each class held out for a test where the folder has no splits; 0
            for none.
        monitor: the validation metric by which the best checkpoint is chosen.
        max_megapixels: a larger image is refused from its header.
        workers: processes that decode images.
    """

    source: Literal["folder", "digits"]
    name: str | None = Field(pattern=r"^[\w][\w .-]*$")
    root: ExpandedPath | None
    val_fraction: Number = Field(gt=0, lt=1)
    test_fraction: Number = Field(ge=0, lt=1)
    monitor: Monitor
    max_megapixels: Number = Field(gt=0)
    workers: Workers

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction:g} + test_fraction {self.test_fraction:g} "
                "leave nothing to train on; their sum must be < 1"
            )
        return self


class AugmentationConfig(Group):
    """``augmentation=…``: Albumentations transforms of a training image, in order.

    Attributes:
        transforms: each ``{name: <Albumentations class>, <argument>: <value>, …}``. The value
            ``image_size_px`` stands for the image size of the model.
    """

    transforms: list[dict[str, Any]]


class ModelConfig(Group):
    """``model=…``: the backbone and its weights.

    Attributes:
        backbone: ``nano`` or the name of any timm model.
        pretrained: take weights from the hub; ``weights`` comes first.
        weights: a local file of weights (safetensors or PyTorch, timm or torchvision layout).
        image_size_px: side of the square that the network sees; null for the size with which
            the backbone was pretrained.
        resize_mode: ``crop`` (shorter side, then centre), ``pad`` (whole image), ``squash``.
    """

    backbone: str = Field(min_length=1)
    pretrained: bool
    weights: ExpandedPath | None
    image_size_px: Whole | None = Field(ge=16, le=2048)
    resize_mode: Literal["crop", "pad", "squash"]


class LinearHeadConfig(Group):
    """``head=linear``: dropout and one linear layer."""

    name: Literal["linear"]
    dropout: Number = Field(ge=0, lt=1)


class MlpHeadConfig(Group):
    """``head=mlp``: one hidden layer of ``hidden_features`` units."""

    name: Literal["mlp"]
    dropout: Number = Field(ge=0, lt=1)
    hidden_features: Whole = Field(ge=1)


class CosineHeadConfig(Group):
    """``head=cosine``: cosine similarity to one direction per class, times ``scale``."""

    name: Literal["cosine"]
    dropout: Number = Field(ge=0, lt=1)
    scale: Number = Field(gt=0)


HeadConfig = Annotated[
    LinearHeadConfig | MlpHeadConfig | CosineHeadConfig, Field(discriminator="name")
]


class FreezeConfig(Group):
    """``freeze=…``: which part of the backbone learns, and when.

    Attributes:
        policy: ``none`` trains everything, ``backbone`` only the head, ``gradual`` opens one
            more stage from the top every ``epochs_per_stage`` epochs.
        epochs_per_stage: for ``gradual``.
    """

    policy: Literal["none", "backbone", "gradual"]
    epochs_per_stage: Whole = Field(ge=1)


class LossConfig(Group):
    """``loss=…``: what is minimised."""

    name: Literal["cross_entropy"]
    label_smoothing: Number = Field(ge=0, lt=1)


class OptimizerConfig(Group):
    """``optimizer=…``: the optimizer and its rates.

    Attributes:
        name: ``adamw``, ``sgd`` (Nesterov), or any other that timm's factory knows.
        lr: learning rate of the head.
        backbone_lr_factor: the last backbone stage learns at ``lr`` times this.
        layer_decay: each earlier stage learns at the rate of the next times this.
        weight_decay: not applied to norms and biases.
        momentum: for ``sgd`` and its relatives.
    """

    name: str = Field(min_length=1)
    lr: Number = Field(gt=0)
    backbone_lr_factor: Fraction
    layer_decay: Fraction
    weight_decay: Number = Field(ge=0)
    momentum: Number = Field(ge=0, lt=1)


class CosineSchedulerConfig(Group):
    """``scheduler=cosine``: linear warm-up, then half a cosine down to ``final_lr_factor``."""

    name: Literal["cosine"]
    warmup_epochs: Number = Field(ge=0)
    final_lr_factor: Number = Field(ge=0, le=1)


class OneCycleSchedulerConfig(Group):
    """``scheduler=onecycle``: up for ``warmup_fraction`` of all steps, then down."""

    name: Literal["onecycle"]
    warmup_fraction: Number = Field(gt=0, lt=1)
    initial_lr_factor: Fraction
    final_lr_factor: Number = Field(ge=0, le=1)


class ConstantSchedulerConfig(Group):
    """``scheduler=constant``: linear warm-up, then no change."""

    name: Literal["constant"]
    warmup_epochs: Number = Field(ge=0)


SchedulerConfig = Annotated[
    CosineSchedulerConfig | OneCycleSchedulerConfig | ConstantSchedulerConfig,
    Field(discriminator="name"),
]


class TrainerConfig(Group):
    """``trainer=…``: how long, on what, in which number format.

    Attributes:
        accelerator: ``auto`` takes a GPU where there is one.
        strategy: ``auto`` is one process on one device and DDP on several.
        devices: number of devices on each node; ``auto`` for all GPUs, or one CPU process.
        num_nodes: number of machines.
        precision: ``auto`` takes bfloat16 where the hardware computes in it natively.
        epochs: passes over the training images.
        batch_size: images of one forward pass, over all devices together.
        accumulate_batches: batches whose gradients add up to one optimizer step.
        gradient_clip: largest norm of the gradient; null for no limit.
        early_stopping_patience: epochs without a better ``dataset.monitor`` before training
            stops; null to train to the end.
    """

    accelerator: Literal["auto", "cpu", "gpu"]
    strategy: Literal["auto", "ddp", "fsdp"]
    devices: Annotated[Whole, Field(ge=1)] | Literal["auto"]
    num_nodes: Whole = Field(ge=1)
    precision: Annotated[Literal["auto", "32", "bf16-mixed", "16-mixed"], BeforeValidator(str)]
    epochs: Whole = Field(ge=1)
    batch_size: Whole = Field(ge=1)
    accumulate_batches: Whole = Field(ge=1)
    gradient_clip: Number | None = Field(gt=0)
    early_stopping_patience: Whole | None = Field(ge=1)


class CsvLoggerConfig(Group):
    """``logger=csv``: ``metrics.csv`` in the run directory, which every run has."""

    name: Literal["csv"]


class TensorboardLoggerConfig(Group):
    """``logger=tensorboard``: event files in the run directory as well."""

    name: Literal["tensorboard"]


class MlflowLoggerConfig(Group):
    """``logger=mlflow``: a server or database; null is ``mlflow.db`` in the run directory."""

    name: Literal["mlflow"]
    experiment_name: str
    tracking_uri: str | None


class WandbLoggerConfig(Group):
    """``logger=wandb``: Weights & Biases."""

    name: Literal["wandb"]
    project: str
    offline: bool


LoggerConfig = Annotated[
    CsvLoggerConfig | TensorboardLoggerConfig | MlflowLoggerConfig | WandbLoggerConfig,
    Field(discriminator="name"),
]


class TrainConfig(Group):
    """``finetune train``.

    Attributes:
        seed: of the split, the weights, the order and the augmentation.
        runs: folder in which each training gets a folder of its own.
        name: the run's folder below ``runs/<dataset>``; null for the time of its start.
        resume: a run directory whose training goes on.
        debug: show tracebacks.
    """

    dataset: DatasetConfig
    augmentation: AugmentationConfig
    model: ModelConfig
    head: HeadConfig
    freeze: FreezeConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    logger: LoggerConfig | None = None  # `~logger` takes the group away
    seed: Whole = Field(ge=0, lt=2**32)
    runs: ExpandedPath
    name: str | None = Field(pattern=r"^[\w][\w .-]*$")
    resume: ExpandedPath | None
    debug: bool

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        warmup = getattr(self.scheduler, "warmup_epochs", 0)
        if warmup >= self.trainer.epochs:
            raise ValueError(
                f"scheduler.warmup_epochs: got {warmup:g}, expected less than "
                f"trainer.epochs ({self.trainer.epochs})"
            )
        gpu_only = self.trainer.precision == "16-mixed" and self.trainer.accelerator == "cpu"
        if gpu_only:
            raise ValueError(
                "trainer.precision: got 16-mixed, which needs a GPU; on a CPU use "
                "trainer.precision=bf16-mixed or trainer.precision=32"
            )
        if self.trainer.strategy == "fsdp" and self.trainer.accelerator == "cpu":
            raise ValueError(
                "trainer.strategy: got fsdp, which needs GPUs; on a CPU use trainer=ddp "
                "trainer.accelerator=cpu"
            )
        return self


class EvaluateConfig(Group):
    """``finetune evaluate``.

    Attributes:
        run: a run directory with a trained model.
        split: of the run's own images; not used with ``root``.
        root: another folder of labelled images, all of which are evaluated.
        output: where the metrics go as JSON; null for a name inside the run directory.
        batch_size: images of one forward pass.
        workers: processes that decode images.
        debug: show tracebacks.
    """

    run: ExpandedPath
    split: SplitName
    root: ExpandedPath | None
    output: ExpandedPath | None
    batch_size: Whole = Field(ge=1)
    workers: Workers
    debug: bool


class PredictConfig(Group):
    """``finetune predict``.

    Attributes:
        run: a run directory, or any folder with a model bundle.
        input: an image, a folder, or a glob such as ``photos/**/*.jpg``.
        output: ``.csv``, ``.jsonl`` or ``.parquet``; null prints CSV on the terminal.
        batch_size: images of one forward pass.
        workers: processes that decode images.
        debug: show tracebacks.
    """

    run: ExpandedPath
    input: ExpandedPath | None
    output: ExpandedPath | None
    batch_size: Whole = Field(ge=1)
    workers: Workers
    debug: bool


class ExportConfig(Group):
    """``finetune export``.

    Attributes:
        run: a run directory with a trained model.
        format: kind of file.
        output: where the file goes; null for ``model.ts`` in the run directory.
        tolerance: largest difference of probabilities between the file and the model.
        workers: processes that decode the images of the comparison.
        debug: show tracebacks.
    """

    run: ExpandedPath
    format: Literal["torchscript"]
    output: ExpandedPath | None
    tolerance: Number = Field(gt=0, lt=1)
    workers: Workers
    debug: bool


class InspectConfig(Group):
    """``finetune inspect``.

    Attributes:
        dataset: the folder to look at.
        output: where the findings go as JSON; null for none.
        seed: of the split that a training would make.
        debug: show tracebacks.
    """

    dataset: DatasetConfig
    output: ExpandedPath | None
    seed: Whole = Field(ge=0, lt=2**32)
    debug: bool


VERBS: Mapping[str, type[Group]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "inspect": InspectConfig,
}
