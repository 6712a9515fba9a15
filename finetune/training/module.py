"""The LightningModule: steps and logging.

Shapes: ``B`` images, ``S`` pixels a side, ``C`` classes.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from finetune.data.batches import sample_seed
from finetune.data.preprocess import Preprocess
from finetune.errors import TrainingError
from finetune.models.answers import Task, as_hot, to_probabilities
from finetune.models.classifier import Classifier
from finetune.models.freezing import (
    Freezing,
    apply_frozen_mode,
    backbone_stages,
    batchnorm_parameters,
    check_freezing,
    open_stages,
    set_frozen,
)
from finetune.training.losses import image_losses
from finetune.training.mixing import Mix
from finetune.training.stop_request import StopRequest
from finetune.training.watch import StepWatch

Batch = tuple[Tensor, Tensor]
"""Images ``[B, 3, S, S]`` in 0..255 (uint8 or float) and targets: classes ``[B]`` int64, or with
``multilabel`` multi-hot ``[B, C]`` float32."""


class FineTuning(LightningModule):
    """Train a classifier under a freeze policy.

    Args:
        classifier: the network; images normalised, logits out.
        preprocess: normalises ``[B, 3, S, S]`` in 0..255; copied, so that it moves to the device.
        task: what logits and targets mean.
        class_names: in the order of the logits.
        loss: logits ``[B, C]`` and targets, or shares ``[B, C]``, to a scalar.
        mix: of a training batch; None leaves it as it is.
        metrics: of probabilities ``[B, C]`` and targets; logged as ``val_<name>``.
        monitor: the logged metric that chooses the best checkpoint.
        freezing: what of the backbone learns, and when.
        seed: of dropout and its like, and of mixing.
        request: is told in each step what all processes together want.
        create_optimizers: the groups of parameters by part (stages from input to output, then
            ``head``), the number of optimizer steps and of epochs to what Lightning expects.

    Raises:
        ConfigError: ``freezing`` leaves nothing to learn, or does not fit the backbone.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        preprocess: Preprocess,
        task: Task,
        class_names: Sequence[str],
        loss: nn.Module,
        mix: Mix | None,
        metrics: MetricCollection,
        monitor: str,
        freezing: Freezing,
        seed: int,
        create_optimizers: Callable[
            [Mapping[str, list[nn.Parameter]], int, int], OptimizerLRScheduler
        ],
        request: StopRequest | None = None,
    ) -> None:
        super().__init__()
        # Convolutions are faster so, and most of all in bfloat16.
        self.classifier = classifier.to(memory_format=torch.channels_last)
        self.preprocess = copy.deepcopy(preprocess)
        self.task: Task = task
        self.class_names = tuple(class_names)
        self.loss = loss
        self.mix = mix
        self.monitor = monitor
        self.val_metrics = metrics.clone(prefix="val_")
        # By default it leaves NaN out of the mean, and nobody would see it. Disabled, it ignores
        # weights as well (torchmetrics 1.9), so it takes one loss per image.
        self.val_loss = MeanMetric(nan_strategy="disable")
        # Sum and number of the epoch's losses over all processes, the same in each of them, so
        # that one process's checkpoint holds what all need to go on.
        self._losses = torch.zeros(2)
        self._support = torch.zeros(0)
        self.stages = backbone_stages(classifier.backbone)
        check_freezing(classifier.backbone, self.stages, freezing)
        self.freezing = freezing
        self.seed = seed
        self._create_optimizers = create_optimizers
        self.request = request or StopRequest()
        self._watch = StepWatch()
        self._suffix: list[nn.Module] = []
        # DDP only sees parameters that take gradients when it wraps the model, so a stage
        # that opens later must be open until then.
        is_closed = freezing.policy == "backbone"
        self.num_frozen = len(self.stages) if is_closed else freezing.stages
        self._freeze()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Name the parameters that ever learn, by stage from input to output, then the head."""
        head = [p for p in self.classifier.head.parameters() if p.requires_grad]
        if self.freezing.policy == "backbone":
            return {"head": head}
        backbone = self.classifier.backbone
        parameters = dict(backbone.named_parameters())
        learns = set(parameters)
        if self.freezing.only_batchnorm:
            learns = batchnorm_parameters(backbone)
        # Some backbones of timm (hgnet, mambaout) have a stage of this name themselves.
        stages = {
            "backbone.head" if stage.name == "head" else stage.name: [
                parameters[name] for name in stage.parameter_names if name in learns
            ]
            for stage in self.stages[self.freezing.stages :]
        }
        return {**stages, "head": head}

    def start_at(self, suffix: nn.Module) -> None:
        """Take what a frozen prefix gives, instead of images, from now on.

        Args:
            suffix: activations to pooled features ``[B, F]``, made of the backbone's own modules.
        """
        self._suffix = [suffix]  # in a list: its parameters are the classifier's already

    @property
    def suffix(self) -> tuple[nn.Module, ...]:
        """What `start_at` was given, if anything."""
        return tuple(self._suffix)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen stays in eval mode, so its BatchNorm does not move."""
        super().train(mode)
        if mode:
            apply_frozen_mode(
                self.classifier.backbone,
                self.stages,
                self.num_frozen,
                batchnorm=self.freezing.batchnorm,
            )
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """Turn ``[B, 3, S, S]`` in 0..255 into the network's input."""
        return self.preprocess.normalise(images)

    def forward(self, images: Tensor) -> Tensor:
        """Give logits ``[B, C]`` for images ``[B, 3, S, S]`` in 0..255; see `start_at`."""
        for suffix in self._suffix:
            return cast(Tensor, self.classifier.head(suffix(images)))
        normalised = self.normalise(images).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.classifier(normalised))

    def on_train_start(self) -> None:
        """Open the stages also where a run goes on in the middle of an epoch."""
        self._open_stages()
        self._losses = self._losses.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Open the stages that learn in this epoch, and begin to count its losses."""
        self._open_stages()
        self._losses = torch.zeros(2, device=self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses of the epoch so far."""
        checkpoint["train_losses"] = self._losses.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self._losses = checkpoint["train_losses"]

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Let dropout depend on seed, step and process alone: a resumed run draws alike."""
        del batch
        draw = batch_index * self.trainer.world_size + self.global_rank
        torch.manual_seed(sample_seed(self.seed, self.current_epoch, draw))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch.

        Raises:
            TrainingError: the loss is not finite (on a GPU, that of the step before).
        """
        images, targets = batch
        if self.mix is not None:
            # Not torch's generator: dropout shall not depend on what is mixed.
            key = [self.seed, self.current_epoch, batch_index, self.global_rank]
            images, targets = self.mix(images, targets, np.random.default_rng(key))
        loss = cast(Tensor, self.loss(self(images), targets))
        self._agree(loss)
        return loss

    def on_train_epoch_end(self) -> None:
        """Stop where going on would only save numbers that are none.

        Raises:
            TrainingError: the mean loss of the epoch is not finite (that of validation also shows
                weights that broke in the last step), or the monitored metric is undefined.
        """
        for name, label in (("train_loss", "training"), ("val_loss", "validation")):
            mean = self.trainer.callback_metrics.get(name)
            if mean is not None and not torch.isfinite(mean):
                epoch = self.current_epoch + 1
                raise _not_finite(f"The {label} loss is {mean.item()} in epoch {epoch}")
        monitored = self.trainer.callback_metrics.get(self.monitor)
        if monitored is not None and torch.isnan(monitored):
            counted = self._support.clone()  # made in inference mode, where nothing else may write
            support = cast(Tensor, self.trainer.strategy.reduce(counted, reduce_op="sum"))
            raise TrainingError(why_undefined(self.monitor, support.tolist(), self.class_names))

    def on_validation_start(self) -> None:
        """Give every process the BatchNorm statistics that the checkpoint will hold."""
        self._support = torch.zeros(len(self.class_names), device=self.device)
        if self.trainer.world_size > 1:
            for buffer in self.classifier.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count one batch into the metrics of the epoch."""
        del batch_index
        images, targets = batch
        logits = self(images).float()
        self.val_loss.update(image_losses(logits, targets, self.task))
        self.val_metrics.update(to_probabilities(logits, self.task), targets)
        self._support += as_hot(targets, len(self.class_names)).sum(0)

    def on_validation_epoch_end(self) -> None:
        """Log what the whole validation set says, each image counted once."""
        values: dict[str, Any] = {"val_loss": self.val_loss.compute(), **self.val_metrics.compute()}
        # Here, and not in the steps: an epoch that goes on may have had them all before.
        total, count = self._losses.unbind()
        values["train_loss"] = total / count
        # Equal in all processes already; without sync_dist, Lightning warns that they may differ.
        self.log_dict(values, sync_dist=True)
        self.val_loss.reset()
        self.val_metrics.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and its schedule for the whole training."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self._create_optimizers(self.parts(), steps, self.trainer.max_epochs or 1)

    def _agree(self, loss: Tensor) -> None:
        """Share the loss and the wishes of all processes, in one message.

        Raises:
            TrainingError: a loss is not finite (on a GPU, that of the step before).
        """
        request, processes = self.request, 1 if self._trainer is None else self.trainer.world_size
        wishes = [float(request.wants_stop), float(request.wants_save)]
        numbers = torch.cat([loss.detach().float().view(1), torch.tensor(wishes).to(loss.device)])
        if processes > 1:
            torch.distributed.all_reduce(numbers)
        self._losses += torch.stack([numbers[0] / processes, torch.ones_like(numbers[0])])
        known = self._watch.read(numbers)
        if known is not None and not math.isfinite(known[0]):
            where = f"epoch {self.current_epoch + 1}, step {self.global_step + 1}"
            raise _not_finite(f"The training loss is not finite in {where}")
        if processes == 1:
            known = [0.0, *wishes]
        if known is not None:
            request.agree(to_stop=known[1] > 0, to_save=known[2] > 0)

    def _open_stages(self) -> None:
        num_open = open_stages(self.freezing, epoch=self.current_epoch, num_stages=len(self.stages))
        self.num_frozen = len(self.stages) - num_open
        self._freeze()
        self.train()

    def _freeze(self) -> None:
        set_frozen(
            self.classifier.backbone,
            self.stages,
            self.num_frozen,
            only_batchnorm=self.freezing.only_batchnorm,
        )


def _not_finite(what: str) -> TrainingError:
    return TrainingError(
        f"{what}; the last finite checkpoint is kept. Try a smaller optimizer.lr, or "
        "trainer.precision=32."
    )


def why_undefined(monitor: str, support: Sequence[float], class_names: Sequence[str]) -> str:
    """Say which classes validation lacks, so that a metric has no value.

    Args:
        monitor: the metric, as logged.
        support: validation images of each class.
        class_names: in the same order.
    """
    absent = [name for name, count in zip(class_names, support, strict=True) if not count]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        reason = f"no validation image shows {', '.join(absent[:5])}{more}"
    else:
        reason = "every validation image shows the same labels"
    name = monitor.removeprefix("val_")
    return (
        f"dataset.monitor: {name} is undefined, since {reason}. Give validation images of each "
        "class, or choose another metric, such as dataset.monitor=loss."
    )
