"""From config to components: what a training is made of."""

from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import nn

from finetune.commands.dataset import class_counts
from finetune.config import TrainConfig, settled
from finetune.data.discover import ImageFolder
from finetune.data.preprocess import Preprocess
from finetune.evaluation.epoch import training_metrics
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing
from finetune.models.heads import create_head
from finetune.run import RunDirectory
from finetune.training.averaging import MovingAverage
from finetune.training.balance import class_weights, log_priors, positive_weights
from finetune.training.callbacks import Deadline, EarlyStop, EpochTable, StepProgress
from finetune.training.hardware import Hardware, choose_hardware
from finetune.training.loggers import create_logger
from finetune.training.losses import create_loss
from finetune.training.mixing import create_mix
from finetune.training.module import FineTuning
from finetune.training.optim import (
    create_optimizer,
    create_scheduler,
    parameter_groups,
    stage_rates,
)
from finetune.training.trainer import create_trainer


def build_hardware(config: TrainConfig) -> Hardware:
    """Settle device, strategy and precision."""
    trainer = config.trainer
    return choose_hardware(
        accelerator=trainer.accelerator,
        strategy=trainer.strategy,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        precision=trainer.precision,
    )


def build_classifier(config: TrainConfig, *, num_classes: int, load_weights: bool) -> Classifier:
    """Make the network.

    Args:
        config: of the training.
        num_classes: of the data.
        load_weights: False where a checkpoint brings them.
    """
    model = config.model
    backbone = create_backbone(
        model.backbone,
        pretrained=model.pretrained and model.weights is None and load_weights,
        weights=model.weights if load_weights else None,
        image_size_px=None if model.image_size_px is None else settled(model.image_size_px),
    )
    head = create_head(
        config.head.name,
        in_features=describe_backbone(backbone).num_features,
        num_classes=num_classes,
        **head_arguments(config),
    )
    return Classifier(backbone, head)


def head_arguments(config: TrainConfig) -> dict[str, float | int]:
    """Give the head's own arguments by name."""
    return config.head.model_dump(exclude={"name"})


def build_preprocess(config: TrainConfig, classifier: Classifier) -> Preprocess:
    """Make the preprocessing that the backbone's weights expect."""
    info = describe_backbone(classifier.backbone)
    return Preprocess(
        image_size_px=info.image_size_px,
        resize_mode=config.model.resize_mode,
        crop_fraction=info.crop_fraction,
        interpolation=info.interpolation,
        mean=info.mean,
        std=info.std,
        color=config.dataset.color,
    )


def build_module(
    config: TrainConfig, classifier: Classifier, preprocess: Preprocess, folder: ImageFolder
) -> FineTuning:
    """Make the LightningModule; ``folder`` holds the images with their splits."""
    task, num_classes = config.task, len(folder.class_names)

    def create_optimizers(
        parts: Mapping[str, list[nn.Parameter]], steps: int, epochs: int
    ) -> OptimizerLRScheduler:
        optimizer = create_optimizer(
            config.optimizer.name,
            parameter_groups(
                parts,
                learning_rates(config, parts),
                weight_decay=settled(config.optimizer.weight_decay),
            ),
            lr=settled(config.optimizer.lr),
            momentum=config.optimizer.momentum,
        )
        scheduler = create_scheduler(
            optimizer,
            config.scheduler.name,
            total_steps=steps,
            total_epochs=epochs,
            settings=config.scheduler.model_dump(exclude={"name"}),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    return FineTuning(
        classifier,
        preprocess=preprocess,
        task=task,
        class_names=folder.class_names,
        loss=build_loss(config, folder),
        mix=create_mix(
            mixup_alpha=settled(config.augmentation.mixup_alpha),
            cutmix_alpha=config.augmentation.cutmix_alpha,
            num_classes=num_classes,
        ),
        metrics=training_metrics(num_classes, task=task, names=config.dataset.metrics),
        monitor=monitor_key(config),
        freezing=build_freezing(config),
        seed=config.seed,
        create_optimizers=create_optimizers,
    )


def build_freezing(config: TrainConfig) -> Freezing:
    """Say what of the backbone learns."""
    freeze = config.freeze
    batchnorm = freeze.batchnorm
    if batchnorm == "auto":
        raise ValueError("freeze.batchnorm: got auto; settle the config first")
    return Freezing(freeze.policy, freeze.epochs_per_stage, freeze.stages, batchnorm)


def build_loss(config: TrainConfig, folder: ImageFolder) -> nn.Module:
    """Make the loss, balanced by the classes' training images as ``dataset.balance`` says."""
    balance = build_balance(config, folder)
    return create_loss(
        config.loss.name,
        task=config.task,
        **config.loss.model_dump(exclude={"name"}),
        class_weights=balance.class_weights,
        log_priors=balance.log_priors,
    )


class BalanceTerms(NamedTuple):
    """What a loss takes, or None: factors of the classes, and logarithms of their shares."""

    class_weights: list[float] | None
    log_priors: list[float] | None


def build_balance(
    config: TrainConfig, folder: ImageFolder, *, weighs_for_sampler: bool = False
) -> BalanceTerms:
    """Count the classes' training images for the loss, as ``dataset.balance`` says.

    Args:
        config: of the training, settled.
        folder: images with their splits.
        weighs_for_sampler: give weights in place of a sampler too, where all images are seen once.
    """
    counts = list(class_counts(folder, "train").values())
    num_images = sum(sample.split == "train" for sample in folder.samples)
    balance, task = config.dataset.balance, config.task
    weights = (
        positive_weights(counts, num_images) if task == "multilabel" else class_weights(counts)
    )
    return BalanceTerms(
        class_weights=weights
        if balance == "loss" or (weighs_for_sampler and balance == "sampler")
        else None,
        log_priors=log_priors(counts) if balance == "logit_adjustment" else None,
    )


def learning_rates(config: TrainConfig, parts: Mapping[str, object]) -> dict[str, float]:
    """Give the rate of each part: backbone stages from input to output, then the head."""
    stages = [name for name in parts if name != "head"]
    optimizer = config.optimizer
    rates = stage_rates(
        len(stages),
        lr=settled(optimizer.lr),
        backbone_lr_factor=settled(optimizer.backbone_lr_factor),
        layer_decay=settled(optimizer.layer_decay),
    )
    return {**dict(zip(stages, rates, strict=True)), "head": settled(optimizer.lr)}


def build_trainer(
    config: TrainConfig,
    hardware: Hardware,
    run: RunDirectory,
    epochs: EpochTable,
    console: Console,
    *,
    deadline: float | None = None,
) -> Trainer:
    """Make the Trainer; it begins nothing after ``deadline`` (``time.monotonic``)."""
    trainer = config.trainer
    logger = config.logger
    settings = {} if logger is None else logger.model_dump(exclude={"name"})
    if "experiment_name" in settings:
        settings["project"] = settings.pop("experiment_name")
    callbacks: list[Callback] = [epochs]
    if trainer.early_stopping_patience is not None:
        patience = settled(trainer.early_stopping_patience)
        callbacks.append(EarlyStop(epochs, patience, console))
    if console.is_terminal:
        callbacks.append(StepProgress(console))
    if keeps_average(config, hardware):
        callbacks.append(MovingAverage(settled(trainer.ema_decay)))
    if deadline is not None:
        callbacks.append(Deadline(deadline, console))
    return create_trainer(
        hardware,
        epochs=settled(trainer.epochs),
        accumulate_batches=trainer.accumulate_batches,
        gradient_clip=trainer.gradient_clip,
        monitor=monitor_key(config),
        mode=monitor_mode(config),
        folder=run.path,
        stages_open_later=config.freeze.policy == "gradual",
        synchronise_batchnorm=config.freeze.batchnorm == "train" and hardware.world_size > 1,
        callbacks=callbacks,
        logger=None
        if logger is None or console.quiet
        else create_logger(logger.name, folder=run.path, run_name=run.path.name, **settings),
    )


def build_trial(
    config: TrainConfig, hardware: Hardware, run: RunDirectory
) -> tuple[Trainer, EpochTable]:
    """Make a Trainer that leaves nothing behind, and the table of its epochs."""
    table = EpochTable(
        None,
        metrics=config.dataset.metrics,
        monitor=monitor_key(config),
        mode=monitor_mode(config),
        console=Console(quiet=True),
    )
    trainer = create_trainer(
        hardware,
        epochs=settled(config.trainer.epochs),
        accumulate_batches=config.trainer.accumulate_batches,
        gradient_clip=config.trainer.gradient_clip,
        monitor=monitor_key(config),
        mode=monitor_mode(config),
        folder=run.path,
        keeps_checkpoints=False,
        stages_open_later=False,
        synchronise_batchnorm=False,
        callbacks=[table],
        logger=None,
    )
    return trainer, table


def keeps_average(config: TrainConfig, hardware: Hardware) -> bool:
    """Tell whether the weights are averaged over the steps; FSDP has them in pieces."""
    return settled(config.trainer.ema_decay) > 0 and hardware.strategy != "fsdp"


def monitor_key(config: TrainConfig) -> str:
    """Name the logged metric that chooses the best checkpoint; settled, not ``auto``."""
    return f"val_{config.dataset.monitor}"


def monitor_mode(config: TrainConfig) -> str:
    """Say which way is better."""
    return "min" if config.dataset.monitor == "loss" else "max"
