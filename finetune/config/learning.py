"""The groups of a training: what learns, how, on what, and who watches."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune.config.types import ExpandedPath, Fraction, Group, Number, Whole


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
    """``loss=…``: what is minimised; with ``task=multilabel``, binary cross-entropy per label."""

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
