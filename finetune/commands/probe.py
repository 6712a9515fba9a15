"""The probe: the head fitted on features of the frozen backbone, before the first step."""

import math
import time
from collections.abc import Mapping, Sequence

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from finetune.cache import find_cache
from finetune.commands.components import BalanceTerms, build_balance, monitor_key
from finetune.commands.dataset import sets_of_copies
from finetune.commands.label_issues import find_issues, write_issues
from finetune.commands.setup import Setup
from finetune.config import TrainConfig, settled
from finetune.data.audit import Audit
from finetune.data.discover import ImageFolder
from finetune.data.labelled_images import LabelledImages
from finetune.data.units import make_units
from finetune.evaluation.epoch import training_metrics
from finetune.models.answers import to_probabilities
from finetune.models.heads import LinearHead
from finetune.run import write_json
from finetune.training.checkpoints import AtomicCheckpointIO
from finetune.training.feature_cache import (
    FeatureCache,
    Features,
    cached_features,
    features_key,
    open_feature_cache,
)
from finetune.training.features import compute_features
from finetune.training.hardware import choose_workers, forward_batch_size
from finetune.training.losses import image_losses
from finetune.training.module import FineTuning
from finetune.training.probe import Probe, fit_probe, out_of_fold_probabilities


def start_from_probe(setup: Setup) -> None:
    """Fit the head on features of the training images, measure it, and write it down.

    It becomes the head of the module, the row of epoch 0, ``probe.json`` and ``probe.ckpt``.
    """
    config, module, data = setup.config, setup.module, setup.data
    began = time.monotonic()
    assert data.resized_train is not None  # noqa: S101 - for mypy; `build_data` gives it
    cache = _open_cache(setup)
    train = _features(setup, cache, data.resized_train, "train")
    val = _features(setup, cache, data.val, "val")
    computed = time.monotonic()
    balance = build_balance(config, setup.folder, weighs_for_sampler=True)
    groups = _groups(setup.folder, setup.audit, config.seed)
    probe = fit_probe(
        train.rows,
        data.train.targets,
        num_classes=len(module.class_names),
        task=config.task,
        groups=groups,
        seed=config.seed,
        class_weights=balance.class_weights,
        log_priors=balance.log_priors,
    )
    fitted = time.monotonic()
    put_into_head(module, probe)
    values = _measure(config, module, val.rows, data.val.targets)
    write_json(setup.run.probe, _record(probe, values))
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {f"classifier.{k}": v for k, v in module.classifier.state_dict().items()}},
        setup.run.probe_checkpoint,
    )
    count, kept = len(train.rows) + len(val.rows), train.from_cache + val.from_cache
    known = f", {kept:,} of them kept from before" if kept else ""
    monitor = monitor_key(config)
    lines = [
        f"Probe: features of {count:,} images in {computed - began:.1f} s{known}; regression in "
        f"{fitted - computed:.1f} s, {_describe(probe)}: {monitor.removeprefix('val_')} "
        f"{values[monitor]:.4f} on val.",
        *cache.notes,
    ]
    if config.evidence.report:
        lines += _doubt_labels(setup, train.rows, probe, groups, balance)
    setup.console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    setup.epochs.start(values, settled(config.trainer.epochs))


def train_features(setup: Setup) -> Tensor:
    """Give the features of the training images, ``[N, F]``, most of them from the cache."""
    assert setup.data.resized_train is not None  # noqa: S101 - for mypy; `build_data` gives it
    return _features(setup, _open_cache(setup), setup.data.resized_train, "train").rows


def _doubt_labels(
    setup: Setup, features: Tensor, probe: Probe, groups: Sequence[int], balance: BalanceTerms
) -> list[str]:
    """List the training images that look more like another class; say how many."""
    samples, targets = setup.folder.of_split("train"), setup.data.train.targets
    names, task = setup.folder.class_names, setup.config.task
    probabilities = out_of_fold_probabilities(
        features,
        targets,
        num_classes=len(names),
        task=task,
        strength=probe.strength,
        groups=groups,
        seed=setup.config.seed,
        class_weights=balance.class_weights,
        log_priors=balance.log_priors,
    )
    issues = find_issues(samples, targets, probabilities, names, task=task, split="train")
    write_issues(setup.run.label_issues, issues)
    if not issues.rows:
        return []
    return [
        f"Labels: {len(issues.rows)} of {len(samples):,} training images look more like another "
        f"class than like their own; see {setup.run.label_issues.name}."
    ]


def put_into_head(module: FineTuning, probe: Probe) -> None:
    """Make the probe the head."""
    head = module.classifier.head
    assert isinstance(head, LinearHead)  # noqa: S101 - for mypy; `starts_from_probe` has looked
    with torch.no_grad():
        head.linear.weight.copy_(probe.weight)
        head.linear.bias.copy_(probe.bias)


def _open_cache(setup: Setup) -> FeatureCache:
    """Open the features that this backbone gave of images before; its settings are the key."""
    config = setup.config
    key = features_key(
        setup.classifier.backbone,
        name=config.model.backbone,
        preprocessing={
            **setup.preprocess.settings(),
            "max_megapixels": config.dataset.max_megapixels,
            "is_rounded": setup.data.val.cache is not None,
        },
        precision=setup.hardware.precision,
    )
    return open_feature_cache(find_cache(config.cache_folder).features, key=key)


def _features(setup: Setup, cache: FeatureCache, images: LabelledImages, split: str) -> Features:
    console, hardware = setup.console, setup.hardware
    batch_size = forward_batch_size(hardware.device)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    digests = setup.audit.digests if setup.audit is not None else {}
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(f"Features, {split}", total=len(images))

        def compute(places: Sequence[int]) -> Tensor:
            return compute_features(
                setup.classifier.backbone,
                images,
                normalise=setup.module.normalise,
                device=hardware.device,
                dtype=hardware.dtype,
                batch_size=batch_size,
                workers=choose_workers(setup.config.dataset.workers),
                indices=places,
                on_progress=lambda _: progress.advance(task, batch_size),
            )

        return cached_features(
            cache,
            [digests.get(path) for path in images.paths],
            compute=compute,
            on_progress=lambda done: progress.update(task, completed=done),
        )


def _describe(probe: Probe) -> str:
    text = f"strength {probe.strength:g}"
    if probe.curve:
        text += f" of {len(probe.curve)} in {probe.folds} folds"
    return text if probe.is_converged else f"{text}, not converged"


def _groups(folder: ImageFolder, audit: Audit | None, seed: int) -> list[int]:
    """Number the sets of training images that no fold may part."""
    samples = [sample for sample in folder.samples if sample.split == "train"]
    groups = [0] * len(samples)
    for number, unit in enumerate(make_units(samples, sets_of_copies(audit), seed=seed)):
        for member in unit.members:
            groups[member] = number
    return groups


@torch.inference_mode()
def _measure(
    config: TrainConfig, module: FineTuning, features: Tensor, targets: Tensor
) -> dict[str, float]:
    """Measure the head on features ``[N, F]`` as validation measures the whole network."""
    module.classifier.head.eval()
    logits = module.classifier.head(features.to(next(module.classifier.head.parameters()).device))
    known = targets.to(logits.device)
    metrics = (
        training_metrics(len(module.class_names), task=config.task, names=config.dataset.metrics)
        .clone(prefix="val_")
        .to(logits.device)
    )
    metrics.update(to_probabilities(logits, config.task), known)
    scores = {name: float(value) for name, value in metrics.compute().items()}
    return {"val_loss": float(image_losses(logits, known, config.task).mean()), **scores}


def _record(probe: Probe, values: Mapping[str, float]) -> dict[str, object]:
    return {
        "strength": probe.strength,
        "folds": probe.folds,
        "iterations": probe.iterations,
        "is_converged": probe.is_converged,
        "curve": [{"strength": s, "log_loss": loss} for s, loss in probe.curve],
        "val": {
            name.removeprefix("val_"): None if math.isnan(value) else value
            for name, value in values.items()
        },
    }
