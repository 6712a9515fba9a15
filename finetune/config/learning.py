"""The groups of a training: what learns, how, on what, and who watches."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune.config.types import Auto, ExpandedPath, Find, Fraction, Group, Number, Whole


class ModelConfig(Group):
    """``model=…``: the backbone and its weights.

    Attributes:
        backbone: ``nano`` or the name of any timm model.
        pretrained: take weights from the hub; ``weights`` comes first.
        weights: a local file of weights (safetensors or PyTorch, timm or torchvision layout).
        image_size_px: side of the square that the network sees; null for the size with which
            the backbone was pretrained; ``auto`` is left to the recipe.
        resize_mode: ``crop`` (shorter side, then centre), ``pad`` (whole image), ``squash``.
    """

    backbone: str = Field(min_length=1)
    pretrained: bool
    weights: ExpandedPath | None
    image_size_px: Annotated[Whole, Field(ge=16, le=2048)] | Auto | None
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
        policy: ``probe_then_finetune`` fits the head on the frozen backbone's features, then
            trains everything from there; ``none`` trains everything at once; ``backbone`` only
            the head; ``gradual`` opens one more stage from the top every ``epochs_per_stage``
            epochs; ``batchnorm_only`` the head and the BatchNorm layers.
        epochs_per_stage: for ``gradual``.
        stages: this many stages, from the input on, never learn, whatever the policy.
        batchnorm: ``train`` lets the statistics of open stages follow the batches, ``frozen``
            keeps those of pretraining; ``auto`` decides by the images and the batch size.
    """

    policy: Literal["probe_then_finetune", "none", "backbone", "gradual", "batchnorm_only"]
    epochs_per_stage: Whole = Field(ge=1)
    stages: Whole = Field(ge=0)
    batchnorm: Literal["auto", "frozen", "train"]


class CrossEntropyLossConfig(Group):
    """``loss=cross_entropy``; with ``task=multilabel``, binary cross-entropy per label."""

    name: Literal["cross_entropy"]
    label_smoothing: Number = Field(ge=0, lt=1)


class BceLossConfig(Group):
    """``loss=bce``: binary cross-entropy of each class against all others."""

    name: Literal["bce"]
    label_smoothing: Number = Field(ge=0, lt=1)


class FocalLossConfig(Group):
    """``loss=focal``: what is answered well already counts less, the more so with ``gamma``."""

    name: Literal["focal"]
    label_smoothing: Number = Field(ge=0, lt=1)
    gamma: Number = Field(ge=0)


LossConfig = Annotated[
    CrossEntropyLossConfig | BceLossConfig | FocalLossConfig, Field(discriminator="name")
]


class OptimizerConfig(Group):
    """``optimizer=…``: the optimizer and its rates.

    Attributes:
        name: ``adamw``, ``sgd`` (Nesterov), or any other that timm's factory knows.
        lr: learning rate of the head; ``find`` takes it from a range test (Smith 2017).
        backbone_lr_factor: the last backbone stage learns at ``lr`` times this.
        layer_decay: each earlier stage learns at the rate of the next times this.
        weight_decay: not applied to norms and biases.
        momentum: for ``sgd`` and its relatives.

    Each ``auto`` is left to the recipe.
    """

    name: str = Field(min_length=1)
    lr: Annotated[Number, Field(gt=0)] | Auto | Find
    backbone_lr_factor: Annotated[Number, Field(gt=0, le=100)] | Auto
    layer_decay: Fraction | Auto
    weight_decay: Annotated[Number, Field(ge=0)] | Auto
    momentum: Number = Field(ge=0, lt=1)


class CosineSchedulerConfig(Group):
    """``scheduler=cosine``: linear warm-up, then half a cosine down to ``final_lr_factor``."""

    name: Literal["cosine"]
    warmup_epochs: Annotated[Number, Field(ge=0)] | Auto
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
        epochs: passes over the training images; ``auto`` is left to the recipe.
        batch_size: images of one forward pass, over all devices together; ``auto``
            likewise; ``find`` tries which sizes fit, and takes the smallest that is fast.
        accumulate_batches: batches whose gradients add up to one optimizer step.
        gradient_clip: largest norm of the gradient; null for no limit.
        early_stopping_patience: epochs without a better ``dataset.monitor`` and without a
            smaller loss on validation before training stops, the probe being the first to
            beat; null to train to the end, ``auto`` is left to the recipe.
        max_time_minutes: what a training may take; the recipe plans fewer epochs, and no epoch
            starts that would not end in time. null for no limit.
        checkpoint_every_minutes: within a long epoch, ``last.ckpt`` is saved so often as well;
            null for only after each epoch.
        ema_decay: of the moving average of the weights, which is one of those that the best is
            chosen from; 0 for none, ``auto`` is left to the recipe.
        compile: compile the network with ``torch.compile``; the first steps then take longer.
    """

    accelerator: Literal["auto", "cpu", "gpu"]
    strategy: Literal["auto", "ddp", "fsdp"]
    devices: Annotated[Whole, Field(ge=1)] | Literal["auto"]
    num_nodes: Whole = Field(ge=1)
    precision: Annotated[Literal["auto", "32", "bf16-mixed", "16-mixed"], BeforeValidator(str)]
    epochs: Annotated[Whole, Field(ge=1)] | Auto
    batch_size: Annotated[Whole, Field(ge=1)] | Auto | Find
    accumulate_batches: Whole = Field(ge=1)
    gradient_clip: Number | None = Field(gt=0)
    early_stopping_patience: Annotated[Whole, Field(ge=1)] | Auto | None
    max_time_minutes: Number | None = Field(gt=0)
    checkpoint_every_minutes: Number | None = Field(gt=0)
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] | Auto
    compile: bool


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
