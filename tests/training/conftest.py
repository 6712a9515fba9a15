"""What the tests of training share: a tiny module, tiny data, and a Trainer without a terminal."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import nn

from finetune.data.augment import Augmentation
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import discover_folder
from finetune.data.labelled_images import Augmented, LabelledImages, Resized, make_targets
from finetune.data.preprocess import Preprocess
from finetune.evaluation.epoch import training_metrics
from finetune.models.backbones import create_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing
from finetune.models.heads import create_head
from finetune.training.callbacks import EarlyStop, EpochTable
from finetune.training.hardware import Hardware
from finetune.training.losses import create_loss
from finetune.training.module import FineTuning
from finetune.training.optim import create_optimizer, create_scheduler, parameter_groups
from finetune.training.trainer import create_trainer

SIZE_PX = 32
CPU = Hardware("cpu", 1, 1, "auto", "32-true", {})
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
TRANSFORMS = [
    {"name": "RandomResizedCrop", "size": ["image_size_px", "image_size_px"]},
    {"name": "HorizontalFlip", "p": 0.5},
]


@pytest.fixture
def make_module() -> Callable[..., FineTuning]:
    def make(
        policy: Any = "none",
        *,
        backbone: str | nn.Module = "nano",
        epochs_per_stage: int = 1,
        stages: int = 0,
        batchnorm: Any = "train",
        num_classes: int = 2,
        dropout: float = 0.0,
        optimizer: str = "sgd",
        lr: float = 0.05,
        weight_decay: float = 0.01,
        seed: int = 0,
        task: Any = "multiclass",
        mix: Any = None,
        metrics: Any = METRICS,
        monitor: str = "val_accuracy",
    ) -> FineTuning:
        torch.manual_seed(seed)
        body: Any = create_backbone(backbone) if isinstance(backbone, str) else backbone
        # A linear head starts at zero, so the backbone's first gradients would be zero too.
        head = create_head(
            "cosine",
            in_features=body.num_features,
            num_classes=num_classes,
            dropout=dropout,
        )

        def create_optimizers(parts: Any, steps: int, epochs: int) -> Any:
            rates = dict.fromkeys(parts, lr)
            groups = parameter_groups(parts, rates, weight_decay=weight_decay)
            made = create_optimizer(optimizer, groups, lr=lr, momentum=0.9)
            settings = {"warmup_epochs": 0.5, "final_lr_factor": 0.1}
            schedule = create_scheduler(
                made, "cosine", total_steps=steps, total_epochs=epochs, settings=settings
            )
            return {
                "optimizer": made,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

        return FineTuning(
            Classifier(body, head),
            preprocess=make_preprocess(),
            task=task,
            class_names=[f"class {index}" for index in range(num_classes)],
            loss=create_loss("cross_entropy", task=task, label_smoothing=0.0),
            mix=mix,
            metrics=training_metrics(num_classes, task=task, names=metrics),
            monitor=monitor,
            freezing=Freezing(policy, epochs_per_stage, stages, batchnorm),
            seed=7,
            create_optimizers=create_optimizers,
        )

    return make


def make_preprocess() -> Preprocess:
    return Preprocess(SIZE_PX, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def make_data(stripes: Path) -> Callable[..., ImageDataModule]:
    """Twelve images or more to train on, and seven to validate on, of two classes."""
    folder = discover_folder(stripes)
    val = [*folder.samples[20:24], *folder.samples[60:63]]

    def make(
        *,
        batch_size: int = 4,
        workers: int = 0,
        seed: int = 0,
        task: str = "multiclass",
        per_class: int = 6,
    ) -> ImageDataModule:
        train = [*folder.samples[:per_class], *folder.samples[40 : 40 + per_class]]

        def images(samples: Any, transform: Any) -> LabelledImages:
            return LabelledImages(
                folder.root,
                samples,
                make_targets(samples, folder.class_names, is_multilabel=task == "multilabel"),
                transform=transform,
                seed=seed,
                max_megapixels=1,
            )

        return ImageDataModule(
            images(train, Augmented(Augmentation(TRANSFORMS, SIZE_PX))),
            images(val, Resized(make_preprocess())),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Write into ``tmp_path / folder``; the table of epochs is the first callback."""

    def make(
        *callbacks: Callback,
        folder: str = "run",
        epochs: int = 2,
        monitor: str = "val_accuracy",
        mode: str = "max",
        patience: int | None = None,
        accumulate: int = 1,
        gradual: bool = False,
        hardware: Hardware = CPU,
    ) -> Trainer:
        run = tmp_path / folder
        run.mkdir(exist_ok=True)
        table = EpochTable(
            run / "metrics.csv",
            metrics=METRICS,
            monitor=monitor,
            mode=mode,
            console=Console(file=io.StringIO()),
        )
        stop = [] if patience is None else [EarlyStop(table, patience, table.console)]
        return create_trainer(
            hardware,
            epochs=epochs,
            accumulate_batches=accumulate,
            gradient_clip=1.0,
            monitor=monitor,
            mode=mode,
            folder=run,
            stages_open_later=gradual,
            synchronise_batchnorm=False,
            callbacks=[table, *stop, *callbacks],
            logger=None,
        )

    return make
