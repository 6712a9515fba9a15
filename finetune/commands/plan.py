"""The plan: one table, before the first step, of what will happen and why."""

from collections import Counter
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from finetune.commands.components import keeps_average, learning_rates
from finetune.commands.recipe import is_embedded, needs_steps, starts_from_probe
from finetune.commands.setup import Setup
from finetune.config import TrainConfig, settled
from finetune.data.audit import Audit
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import ImageFolder
from finetune.models.freezing import has_batchnorm, open_stages
from finetune.training.hardware import Hardware
from finetune.training.module import FineTuning
from finetune.training.recipe import Choice

CLASSES_SHOWN = 8


def print_plan(plan: Setup) -> None:
    """Print what the training will do."""
    config, folder, hardware = plan.config, plan.folder, plan.hardware
    rows = {
        "data": str(config.dataset.manifest or folder.root),
        "classes": _classes(folder),
        "images": _images(config, folder, plan.data),
        "belong together": _groups(folder, plan.audit),
        "left out": _left_out(folder, plan.audit),
        "beware": _warnings(plan.audit),
        "note": "\n".join(plan.audit.notes) if plan.audit else "",
        "backbone": _backbone(config, plan.module),
        "parameters": _parameters(plan.module),
        "procedure": _procedure(config, plan.hardware),
        **(_steps(config, plan) if needs_steps(config) else {}),
        "balance": plan.reasons["balance"],
        "precision": hardware.reasons["precision"],
        "device": f"{hardware.reasons['device']}; {hardware.reasons['strategy']}, "
        f"{plan.data.workers} workers",
        "image cache": _cache(config, plan.data),
        "best by": plan.reasons["monitor"],
        "seed": str(config.seed),
        "run": str(plan.run.path),
        "recipe": _recipe(plan.choices) if needs_steps(config) else "",
    }
    table = Table(title="Plan", title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, text in rows.items():
        if text:
            table.add_row(f"[bold]{name}", escape(text))
    plan.console.print(table)
    plan.console.print()


def _classes(folder: ImageFolder) -> str:
    counts = Counter(name for sample in folder.samples for name in sample.labels)
    shown = [f"{name} ({counts[name]})" for name in folder.class_names[:CLASSES_SHOWN]]
    more = len(folder.class_names) - len(shown)
    return f"{len(folder.class_names)}: {', '.join(shown)}" + (f", {more} more" if more > 0 else "")


def _images(config: TrainConfig, folder: ImageFolder, data: ImageDataModule) -> str:
    counts = Counter(sample.split for sample in folder.samples)
    parts = ", ".join(f"{split} {counts[split]}" for split in ("train", "val", "test"))
    size = data.train.transform.augmentation.image_size_px  # type: ignore[attr-defined]
    return f"{parts}; {size} px, {config.model.resize_mode}"


def _groups(folder: ImageFolder, audit: Audit | None) -> str:
    """Say what must not be parted by a split; one that was given may, where that is accepted."""
    groups = Counter(sample.group for sample in folder.samples if sample.group is not None)
    parts = [f"{len(groups)} groups of {sum(groups.values())} images"] if groups else []
    for name, sets in (
        ("exact", audit.duplicates if audit else ()),
        ("near", audit.near_duplicates if audit else ()),
    ):
        if sets:
            parts.append(f"{len(sets)} sets of {name} copies")
    return ", ".join(parts)


def _mixing(config: TrainConfig) -> str:
    augmentation = config.augmentation
    alphas = {"mixup": settled(augmentation.mixup_alpha), "cutmix": augmentation.cutmix_alpha}
    return ", ".join(f"{name} {alpha:g}" for name, alpha in alphas.items() if alpha)


def _cache(config: TrainConfig, data: ImageDataModule) -> str:
    if data.train.cache is None:
        return ""
    kept = data.train.cache.describe()
    return (
        f"{config.dataset.cache}: {kept.images} training images ({kept.bytes / 1e6:.0f} MB) are "
        f"there, room for {kept.max_bytes / 1e9:.1f} GB"
    )


def _left_out(folder: ImageFolder, audit: Audit | None) -> str:
    unreadable = audit.unreadable if audit else {}
    parts = [f"{path}: {reason}" for path, reason in list(unreadable.items())[:3]]
    if len(unreadable) > len(parts):
        parts.append(f"{len(unreadable) - len(parts)} more unreadable images")
    if folder.skipped:
        parts.append(f"{len(folder.skipped)} other files (finetune inspect names them)")
    return "\n".join(parts)


def _warnings(audit: Audit | None) -> str:
    """Say what else the audit found; what cannot be read stands under `left out`."""
    findings = audit.findings if audit else ()
    return "\n".join(
        f"{finding.message} {finding.remedy}"
        for finding in findings
        if finding.severity != "info"
        and finding.name not in ("unreadable", "too_large")
        and not finding.accepted
    )


def _backbone(config: TrainConfig, module: FineTuning) -> str:
    model = config.model
    if model.weights is not None:
        source = f"weights from {model.weights}"
    elif is_embedded(config):
        source = "embedded weights, learnt from drawings that formulas make"
    elif model.pretrained:
        source = "pretrained weights from the hub"
    else:
        source = "random weights, so nothing is transferred"
        if module.freezing.policy == "backbone":
            source += "; a frozen random backbone learns little: use freeze=none"
    return f"{model.backbone}, {source}; head {config.head.name}"


def _parameters(module: FineTuning) -> str:
    total = sum(parameter.numel() for parameter in module.classifier.parameters())
    freezing = module.freezing
    first = open_stages(freezing, epoch=0, num_stages=len(module.stages))
    head = sum(parameter.numel() for parameter in module.classifier.head.parameters())
    learning = module.parts()
    trainable = head + sum(
        parameter.numel()
        for stage in module.stages[len(module.stages) - first :]
        for parameter in learning.get(stage.name, ())
    )
    text = f"{trainable:,} trainable, {total - trainable:,} frozen"
    if freezing.policy == "gradual":
        text += f" at first; one stage more every {freezing.epochs_per_stage} epoch(s)"
    if has_batchnorm(module.classifier.backbone) and freezing.policy != "backbone":
        text += f"; BatchNorm statistics: {freezing.batchnorm}"
    return text


def _procedure(config: TrainConfig, hardware: Hardware) -> str:
    """Say in which order things happen, and what the result is chosen from."""
    if not starts_from_probe(config):
        candidates = ["the best epoch"]
        text = "train" if config.freeze.policy != "backbone" else "train the head by steps"
        if config.freeze.policy == "probe_then_finetune":
            text += f"; no probe, since head={config.head.name} is not linear"
    elif not needs_steps(config):
        return "fit the head on features computed once; nothing else learns"
    else:
        candidates = ["the probe", "the best epoch", "their average"]
        text = "fit the head on features computed once, then train everything from there"
    if keeps_average(config, hardware):
        candidates.append("the moving average")
    if len(candidates) > 1:
        text += f"; keep the best of {', '.join(candidates)}"
    return text


def _recipe(choices: Mapping[str, Choice]) -> str:
    """List what was chosen for the user, with the reasons; typing a value overrides it."""
    return "\n".join(f"{key}={choice}: {choice.reason}" for key, choice in choices.items())


def _rates(config: TrainConfig, module: FineTuning) -> str:
    rates = learning_rates(config, module.parts())
    return ", ".join(f"{name} {rate:.2g}" for name, rate in rates.items())


def _steps(config: TrainConfig, plan: Setup) -> dict[str, str]:
    """Say what concerns a training step by step."""
    trainer = config.trainer
    epochs, batch_size = settled(trainer.epochs), settled(trainer.batch_size)
    batches = len(plan.data.train) // batch_size
    steps = max(1, batches // trainer.accumulate_batches) * epochs
    text = f"{steps} in {epochs} epochs; {batch_size} images a batch"
    if trainer.accumulate_batches > 1:
        text += f", {trainer.accumulate_batches} batches a step"
    if trainer.max_time_minutes is not None:
        text += f"; at most {trainer.max_time_minutes:g} minutes in all"
    return {
        "learning rate": _rates(config, plan.module),
        "steps": f"{text}; {config.optimizer.name}, {config.scheduler.name}",
        "mixing": _mixing(config),
    }
