"""What ``auto`` leaves open about classes of unequal size, settled by the images to train on."""

from finetune.commands.dataset import class_counts
from finetune.config import Task, TrainConfig
from finetune.data.discover import ImageFolder
from finetune.errors import ConfigError
from finetune.training.balance import choose_balance, choose_monitor

NEEDS_BOTH = {"auroc", "mean_average_precision", "sensitivity", "specificity"}
"""Metrics that say nothing, or are undefined, where no label tells two images apart."""


def settle(
    config: TrainConfig, folder: ImageFolder, *, is_divided: bool = True
) -> tuple[TrainConfig, dict[str, str]]:
    """Put a value for each ``auto`` of ``dataset``.

    Args:
        config: of the training.
        folder: images with their splits.
        is_divided: False where the splits may still change, and decide nothing.

    Returns:
        The config without ``auto`` there, and for each key the choice with its reason.

    Raises:
        ConfigError: the task cannot be balanced so, or validation cannot be monitored so.
    """
    dataset, task = config.dataset, config.task
    counts = list(class_counts(folder, "train").values())
    num_images = sum(sample.split == "train" for sample in folder.samples)
    balance, balance_reason = dataset.balance, "as asked"
    if balance == "auto":
        balance, balance_reason = choose_balance(counts, task=task, num_images=num_images)
    if task == "multilabel" and balance in ("sampler", "logit_adjustment"):
        raise ConfigError(
            f"dataset.balance: got {balance}, which needs one class per image; with "
            "task=multilabel use loss or none."
        )
    monitor, monitor_reason = dataset.monitor, "as asked"
    if monitor == "auto":
        monitor, monitor_reason = choose_monitor(counts, task=task)
    if is_divided:
        _check_monitor(monitor, folder, task)
    shown = [*dataset.metrics, *({monitor} - {"loss", *dataset.metrics})]
    settled = dataset.model_copy(update={"balance": balance, "monitor": monitor, "metrics": shown})
    return config.model_copy(update={"dataset": settled}), {
        "balance": f"{balance} ({balance_reason})",
        "monitor": f"{monitor} on val ({monitor_reason})",
    }


def _check_monitor(monitor: str, folder: ImageFolder, task: Task) -> None:
    """Refuse before training what no validation image could ever change.

    Raises:
        ConfigError: every validation image has the same labels.
    """
    shown = {sample.labels for sample in folder.samples if sample.split == "val"}
    needs_both = NEEDS_BOTH | ({"balanced_accuracy", "macro_f1"} if task == "multilabel" else set())
    if monitor in needs_both and len(shown) == 1:
        raise ConfigError(
            f"dataset.monitor: got {monitor}, which compares images of different classes, but all "
            f"images to validate with show {' and '.join(*shown) or 'no label'}. Validate with "
            "more images or fewer folds, or choose dataset.monitor=loss."
        )
