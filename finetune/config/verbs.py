"""One model for each verb: its groups and its own keys."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from finetune.config.data import AugmentationConfig, DatasetConfig
from finetune.config.learning import (
    FreezeConfig,
    HeadConfig,
    LoggerConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainerConfig,
)
from finetune.config.types import ExpandedPath, Group, Number, SplitName, Task, Whole, Workers


class TrainConfig(Group):
    """``finetune train``.

    Attributes:
        recipe: ``auto`` chooses each setting that is ``auto`` by the images, the backbone and the
            machine; ``search`` also tries three learning rates.
        task: ``multiclass`` (each image shows one class) or ``multilabel`` (any number; needs a
            manifest).
        cache_folder: where audits and decoded images are kept between runs; null for
            ``finetune`` in the user's cache folder.
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
    recipe: Literal["auto", "search"]
    task: Task
    cache_folder: ExpandedPath | None
    seed: Whole = Field(ge=0, lt=2**32)
    runs: ExpandedPath
    name: str | None = Field(pattern=r"^[\w][\w .-]*$")
    resume: ExpandedPath | None
    debug: bool

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        warmup = getattr(self.scheduler, "warmup_epochs", 0)
        epochs = self.trainer.epochs
        if warmup != "auto" and epochs != "auto" and warmup >= epochs:
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
        manifest: another manifest, with the columns of the one that was trained on; its paths
            begin in ``root``, or in its own folder.
        output: where the metrics go as JSON; null for a name inside the run directory.
        batch_size: images of one forward pass.
        workers: processes that decode images.
        debug: show tracebacks.
    """

    run: ExpandedPath
    split: SplitName
    root: ExpandedPath | None
    manifest: ExpandedPath | None
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
        dataset: the images to look at.
        augmentation: of the contact sheet.
        model: the contact sheet's images are as large as this network's.
        task: as for ``train``.
        output: folder for ``audit.json``, ``split.csv`` and ``contact_sheet.png``; null for none.
        cache_folder: as for ``train``.
        seed: of the split that a training would make.
        debug: show tracebacks.
    """

    dataset: DatasetConfig
    augmentation: AugmentationConfig
    model: ModelConfig
    task: Task
    output: ExpandedPath | None
    cache_folder: ExpandedPath | None
    seed: Whole = Field(ge=0, lt=2**32)
    debug: bool


class DataConfig(Group):
    """``finetune data``: fetch the public images of a data set.

    Attributes:
        dataset: its ``download`` says what, its ``root`` where to.
        source: a file that was downloaded by hand; null downloads it.
        cache_folder: as for ``train``; a download is kept there until the images are complete.
        debug: show tracebacks.
    """

    dataset: DatasetConfig
    source: ExpandedPath | None
    cache_folder: ExpandedPath | None
    debug: bool


class CacheConfig(Group):
    """``finetune cache``: show what is kept between runs, and remove it.

    Attributes:
        clear: remove ``audits``, ``downloads``, ``features``, ``images`` or ``all``; null only
            shows.
        cache_folder: as for ``train``.
        debug: show tracebacks.
    """

    clear: Literal["audits", "downloads", "features", "images", "all"] | None
    cache_folder: ExpandedPath | None
    debug: bool


VERBS: Mapping[str, type[Group]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "inspect": InspectConfig,
    "data": DataConfig,
    "cache": CacheConfig,
}
