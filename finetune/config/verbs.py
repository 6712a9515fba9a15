"""One model for each verb: its groups and its own keys."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune.config.data import AugmentationConfig, DatasetConfig
from finetune.config.evidence import EvidenceConfig
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
from finetune.config.types import (
    ExpandedPath,
    Group,
    Number,
    SplitName,
    Task,
    Whole,
    Words,
    Workers,
)

ExportFormat = Literal["torchscript", "onnx", "torch_export", "safetensors", "backbone"]


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
    evidence: EvidenceConfig
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
        output: where the metrics go as JSON, the picture and the report beside it; null for a name
            inside the run directory.
        evidence: the intervals and the report; what the model was calibrated to stays.
        batch_size: images of one forward pass.
        workers: processes that decode images.
        debug: show tracebacks.
    """

    evidence: EvidenceConfig
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
        run: a run directory, any folder with a model bundle, or an exported file.
        trust: run an exported file that can carry code (TorchScript, ``.pt2``); a bundle and an
            ONNX file cannot.
        input: an image, a folder, a glob such as ``photos/**/*.jpg``, a manifest (``.csv``,
            ``.jsonl`` or ``.parquet`` with a column of paths), or ``-`` for paths on standard
            input, one a line.
        path_column: of a manifest; null for the one that the model was trained with, or ``path``.
        output: ``.csv``, ``.jsonl`` or ``.parquet``; null prints CSV on the terminal.
        probabilities: write a column for each class.
        top_k: write so many best classes, each with its probability; 0 for none.
        threshold: from this probability on, a label is given (``multilabel``), or the second of
            two classes; null for 0.5. Refused with more classes.
        abstain: answers less probable than this are marked as abstained; ``auto`` takes the
            threshold that the model was given on validation, if any, and none with ``threshold``
            or ``augment``, without which it was found; null for none.
        sets: write the prediction set of each image: the classes that may be true, at the coverage
            that the model was given on validation. Not with ``augment``, without which it was
            found. The class that a ``threshold`` gives may lie outside.
        augment: test-time augmentation, the mean of several views: ``none``, ``flip`` (the image
            and its mirror image) or ``crops`` (five crops and their mirror images).
        output_features: ``.parquet`` or ``.npy`` file for the features of each image; null for
            none. Bundles alone.
        resume: true goes on with an output that was interrupted, false begins anew; null refuses
            to write over what is there of one.
        processes: that each run the model on a share of the images; ``auto`` is one, or one for
            each GPU.
        batch_size: images of one forward pass; ``auto`` by the device.
        workers: processes that decode images.
        debug: show tracebacks.
    """

    run: ExpandedPath
    trust: bool
    input: ExpandedPath | None
    path_column: str | None
    output: ExpandedPath | None
    probabilities: bool
    top_k: Whole = Field(ge=0)
    threshold: Number | None = Field(gt=0, lt=1)
    abstain: Annotated[Number, Field(gt=0, le=1)] | Literal["auto"] | None
    sets: bool
    augment: Literal["none", "flip", "crops"]
    output_features: ExpandedPath | None
    resume: bool | None
    processes: Annotated[Whole, Field(ge=1, le=64)] | Literal["auto"]
    batch_size: Annotated[Whole, Field(ge=1)] | Literal["auto"]
    workers: Workers
    debug: bool


class ExportConfig(Group):
    """``finetune export``.

    Attributes:
        run: a run directory with a trained model.
        format: ``torchscript`` (``.ts``), ``onnx`` (``.onnx``) and ``torch_export`` (``.pt2``)
            take raw images and give probabilities; ``safetensors`` are the weights in the layout
            of timm or torchvision; ``backbone`` the same without the head.
        layout: of ``safetensors`` and ``backbone``: the names that timm or torchvision give.
        precision: ``float32``; ``float16``, half the size; ``int8`` (ONNX alone), a quarter.
        output: where the file goes; null for a name in the run directory.
        tolerance: largest difference of probabilities between the file and the model; ``auto`` is
            1e-4 with float32, 2e-2 with float16, none with int8.
        max_accuracy_drop: a file whose accuracy is lower than the model's by more than this, in
            0..1, is refused.
        images: so many validation images are compared, or all where there are fewer.
        debug: show tracebacks.
    """

    run: ExpandedPath
    format: ExportFormat
    layout: Literal["timm", "torchvision"]
    precision: Literal["float32", "float16", "int8"]
    output: ExpandedPath | None
    tolerance: Annotated[Number, Field(gt=0, lt=1)] | Literal["auto"]
    max_accuracy_drop: Number = Field(ge=0, le=1)
    images: Whole = Field(ge=1)
    debug: bool


class ServeConfig(Group):
    """``finetune serve``: answer over HTTP on this machine.

    Attributes:
        run: a run directory, or any folder with a model bundle.
        port: of 127.0.0.1, the only address that is served; 0 takes a free one.
        max_megabytes: larger uploads are refused.
        max_queue: requests that wait; further ones are told to come back (503).
        batch_size: images of one forward pass, from requests that arrive together.
        debug: show tracebacks.
    """

    run: ExpandedPath
    port: Whole = Field(ge=0, le=65535)
    max_megabytes: Number = Field(gt=0, le=1000)
    max_queue: Whole = Field(ge=1)
    batch_size: Whole = Field(ge=1)
    debug: bool


class CompareConfig(Group):
    """``finetune compare``: several runs beside each other, on the same images.

    Attributes:
        runs: run directories, which may also be typed without a name: ``compare runs/digits/*``.
        backbones: trains each of these first, under one recipe and with every other word of the
            command line (``dataset=…``; ``runs`` is then the folder for the trainings, ``name``
            begins their names), and compares the runs. ``model.weights`` may be a folder with a
            file for each.
        split: whose figures are compared; ``auto`` takes ``test`` where every run has it.
        output: folder for ``comparison.json``, ``comparison.csv`` and ``comparison.html``.
        resamples: of the bootstrap behind intervals and differences.
        price_per_hour: of the machine, in any currency, for the cost of each training; null for
            none.
        latency: measure how long one image takes on this machine.
        debug: show tracebacks.
    """

    runs: Annotated[list[ExpandedPath], Words] | None
    backbones: Annotated[list[str], Words, Field(min_length=1)] | None
    split: SplitName | Literal["auto"]
    output: ExpandedPath
    resamples: Whole = Field(ge=100, le=100_000)
    price_per_hour: Annotated[Number, Field(ge=0)] | None
    latency: bool
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
    "compare": CompareConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
    "inspect": InspectConfig,
    "data": DataConfig,
    "cache": CacheConfig,
}
