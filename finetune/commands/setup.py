"""Everything that a training is made of, built from the config; what can be refused, is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import rich
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from finetune.commands.batch_size import put_batch_size
from finetune.commands.components import (
    build_classifier,
    build_hardware,
    build_module,
    build_preprocess,
    monitor_key,
    monitor_mode,
)
from finetune.commands.dataset import data_name
from finetune.commands.folds import OpenRun
from finetune.commands.going_on import Start, choose_start
from finetune.commands.images import Division, images_of, keep_stamps, parent_run
from finetune.commands.live_curves import LiveCurves
from finetune.commands.loaders import build_data
from finetune.commands.recipe import fill_in, settle_recipe
from finetune.commands.refusals import (
    check_batch_size,
    check_counts,
    check_disk_space,
    check_division,
    check_settings,
)
from finetune.commands.settle import settle
from finetune.config import TrainConfig
from finetune.data.audit import Audit
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import ImageFolder
from finetune.data.preprocess import Preprocess
from finetune.models.classifier import Classifier
from finetune.run import RunDirectory, check_run, create_run, read_record
from finetune.training.callbacks import EpochTable
from finetune.training.hardware import Hardware
from finetune.training.module import FineTuning
from finetune.training.recipe import Choice


@dataclass(frozen=True)
class Setup:
    """Everything that a training is made of.

    Attributes:
        config: settled.
        folder: images with their splits.
        audit: None where the run goes on.
        preprocess: of validation.
        data: the loaders.
        module: what learns.
        hardware: what it runs on.
        run: where it writes.
        start: where it begins, or goes on.
        epochs: the table of epochs.
        reasons: what was decided by the counts of the classes.
        choices: of the recipe, by dotted name.
        console: quiet in all processes but the first.
        is_main: whether this is the first process.
    """

    config: TrainConfig
    folder: ImageFolder
    audit: Audit | None
    preprocess: Preprocess
    data: ImageDataModule
    module: FineTuning
    hardware: Hardware
    run: RunDirectory
    start: Start
    epochs: EpochTable
    reasons: Mapping[str, str]
    choices: Mapping[str, Choice]
    console: Console
    is_main: bool

    @property
    def classifier(self) -> Classifier:
        """The network that learns."""
        return self.module.classifier

    def with_choices(self, choices: Mapping[str, Choice]) -> "Setup":
        """Put further choices in place; what learns is made anew, of the same network."""
        config = fill_in(self.config, {key: choice.value for key, choice in choices.items()})
        module = build_module(config, self.classifier, self.preprocess, self.folder)
        for suffix in self.module.suffix:
            module.start_at(suffix)
        return replace(self, config=config, module=module, choices={**self.choices, **choices})

    def with_new_network(self) -> "Setup":
        """Make the network anew, with random weights; for when its own are in pieces (FSDP)."""
        num_classes = len(self.folder.class_names)
        classifier = build_classifier(self.config, num_classes=num_classes, load_weights=False)
        module = build_module(self.config, classifier, self.preprocess, self.folder)
        return replace(self, module=module)


def prepare(config: TrainConfig, open_folds: OpenRun | None) -> Setup:
    """Build everything. Whatever can be refused is refused before any weight is loaded.

    The cheapest comes first: names and settings, then what the images are called and how they are
    divided, then what is in them.

    Args:
        config: validated settings.
        open_folds: gives the run of which this is a fold; None for a run of its own.

    Raises:
        FinetuneError: what is wrong, for the user.
    """
    is_main = is_main_process()
    console = rich.get_console() if is_main else Console(quiet=True)
    hardware = build_hardware(config)
    check_division_early = _check_early(config, hardware, open_folds, is_main=is_main)
    images = images_of(
        config,
        console,
        is_main=is_main,
        looks_ahead=open_folds is not None,
        check=check_division_early,
    )
    folder, audit = images.folder, images.audit
    config, reasons = settle(config, folder)
    found: dict[str, Choice] = {}
    if config.resume is None:
        config, found = put_batch_size(config, folder, audit, hardware, console)
    decided = _decided(config, is_main=is_main)
    config, choices = settle_recipe(config, folder, audit, hardware, decided=decided)
    choices = {**found, **choices}
    check_batch_size(config, hardware)
    check_counts(
        config,
        hardware,
        train=len(folder.of_split("train")),
        val=len(folder.of_split("val")),
    )
    start = choose_start(config)

    seed_everything(config.seed, verbose=False)
    classifier = build_classifier(
        config, num_classes=len(folder.class_names), load_weights=start.checkpoint is None
    )
    preprocess = build_preprocess(config, classifier)
    data = build_data(config, folder, audit, preprocess, hardware, stamps=images.stamps)
    module = build_module(config, classifier, preprocess, folder)
    run = _run_directory(config, open_folds, is_main=is_main)
    if is_main and config.resume is None and images.stamps is not None:
        keep_stamps(run, folder, images.stamps)
    epochs = EpochTable(
        run.epochs,
        metrics=config.dataset.metrics,
        monitor=monitor_key(config),
        mode=monitor_mode(config),
        console=console,
        on_row=LiveCurves(run),
    )
    return Setup(
        config=config,
        folder=folder,
        audit=audit,
        preprocess=preprocess,
        data=data,
        module=module,
        hardware=hardware,
        run=run,
        start=start,
        epochs=epochs,
        reasons=reasons,
        choices=choices,
        console=console,
        is_main=is_main,
    )


def _check_early(
    config: TrainConfig, hardware: Hardware, open_folds: OpenRun | None, *, is_main: bool
) -> Callable[[Division], None]:
    """Refuse what needs no image, and return what will refuse a division before they are opened.

    A process that another one of this training started asks nothing again.
    """
    if parent_run(is_main=is_main) is not None:
        return lambda _: None
    dataset, writes = config.dataset, is_main and config.resume is None
    is_first = open_folds is None or dataset.fold == 0
    if writes and is_first:
        check_run(config.runs, data_name(dataset), config.name)
    backbone = check_settings(config, hardware)
    trainings = 1 if open_folds is None else (dataset.folds or 1) - int(dataset.fold)

    def check(division: Division) -> None:
        check_division(config, hardware, division)
        if writes:
            num_classes = len(division.folder.class_names)
            check_disk_space(config, backbone, num_classes=num_classes, trainings=trainings)

    return check


def _decided(config: TrainConfig, *, is_main: bool) -> dict[str, Any] | None:
    """Return what the recipe chose when the run began; None for a run that begins."""
    known = config.resume if config.resume is not None else parent_run(is_main=is_main)
    if known is None:
        return None
    decided: dict[str, Any] = read_record(RunDirectory(known)).get("recipe", {})
    return decided


def is_main_process() -> bool:
    """Tell whether this is the process that writes; the only one, or the first of several."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _run_directory(
    config: TrainConfig, open_folds: OpenRun | None, *, is_main: bool
) -> RunDirectory:
    if open_folds is not None:
        directory = open_folds().fold(int(config.dataset.fold))
        directory.checkpoints.mkdir(parents=True, exist_ok=True)
        return directory
    if config.resume is not None:
        return RunDirectory(config.resume.resolve())
    if not is_main:  # only the main process writes
        return RunDirectory(parent_run(is_main=False) or config.runs)
    return create_run(config.runs, data_name(config.dataset), config.name)
