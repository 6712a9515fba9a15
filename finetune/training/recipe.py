"""From what is known of the images, the backbone and the machine to settings, each with a reason.

A pure function of `Facts`; what a user has typed is in the facts, and is never chosen again. The
constants come from published recipes where there are some, and from `benchmarks/RESULTS.md` where
we measured: the source stands beside each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

from finetune.models.freezing import FreezePolicy

Value = float | int | str | None


class Choice(NamedTuple):
    """A setting and why it was chosen."""

    value: Value
    reason: str

    def __str__(self) -> str:
        """Write the value as a user would type it."""
        return "null" if self.value is None else str(self.value)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the recipe looks at.

    Attributes:
        num_images: to train on.
        shorter_side_px: of the middle image; None if unknown.
        native_size_px: the images that the backbone was made for.
        is_pretrained: whether the backbone brings weights.
        is_embedded: whether these are the embedded ones of `nano`, which have seen no photograph.
        starts_from_probe: whether the head is fitted before the first step.
        policy: what learns.
        world_size: processes that share a batch.
        batch_size: as typed; None to choose.
        epochs: as typed; None to choose.
    """

    num_images: int
    shorter_side_px: float | None
    native_size_px: int
    is_pretrained: bool
    is_embedded: bool
    starts_from_probe: bool
    policy: FreezePolicy
    world_size: int
    batch_size: int | None
    epochs: int | None


# Steps, not epochs, are what a schedule needs: Kolesnikov et al. 2020 (BiT-HyperRule) take 500 for
# fewer than 20,000 images, 10,000 for fewer than 500,000, else 20,000, of 512 images each. From a
# fitted head far fewer do; see benchmarks/RESULTS.md, "What the recipe is made of".
_BATCH_SIZE = 32
_MAX_BATCH_SHARE = 1 / 6
_EPOCHS = ((500, 8), (2_000, 6), (10_000, 3), (100_000, 2))
_EPOCHS_BEYOND = 2
_EPOCHS_GRADUAL = 10
_SCRATCH_FACTOR = 4
_MIXUP_FROM_IMAGES = 20_000
_BATCHNORM_FROM_IMAGES = 10_000
_BATCHNORM_FROM_BATCH = 16
_LIGHT_FROM_IMAGES = 2_000
_PATIENCE_SHARE = 0.4  # see benchmarks/RESULTS.md, "Stopping early"
_SIZES_PX = (32, 48, 64, 96, 128)
_RANDOM_BATCHNORM = Choice("train", "random weights have no statistics to keep")


def choose_recipe(facts: Facts) -> dict[str, Choice]:
    """Choose every setting that a recipe can, by its dotted name in the config.

    Args:
        facts: about images, backbone and machine.
    """
    batch_size = _batch_size(facts)
    chosen_size = cast(int, batch_size.value) if facts.batch_size is None else facts.batch_size
    epochs = _epochs(facts)
    num_epochs = cast(int, epochs.value) if facts.epochs is None else facts.epochs
    steps = max(1, facts.num_images // chosen_size) * num_epochs
    return {
        "model.image_size_px": choose_image_size(
            facts.shorter_side_px,
            native_size_px=facts.native_size_px,
            expects_it=facts.is_pretrained and not facts.is_embedded,
        ),
        "trainer.batch_size": batch_size,
        "trainer.epochs": epochs,
        **_rates(facts),
        "optimizer.weight_decay": Choice(0.05, "not on norms and biases; ConvNeXt's value"),
        "scheduler.warmup_epochs": choose_warmup(num_epochs),
        "freeze.batchnorm": _batchnorm(facts, chosen_size),
        "augmentation.transforms": choose_augmentation(facts.num_images),
        "augmentation.mixup_alpha": _mixup(facts),
        "trainer.ema_decay": _ema(steps),
        "trainer.early_stopping_patience": _patience(num_epochs, facts.starts_from_probe),
    }


def fit_to_time(epochs: int, *, epoch_seconds: float, seconds: float) -> Choice:
    """Plan as many epochs as there is time for, at most ``epochs``.

    Args:
        epochs: without a limit, >= 1.
        epoch_seconds: of one epoch with its validation, > 0.
        seconds: left for training.

    Returns:
        A number in [0, ``epochs``]; 0 where not even one epoch fits.
    """
    fitting = min(epochs, max(0, math.floor(seconds / epoch_seconds)))
    if fitting == epochs:
        return Choice(epochs, f"an epoch takes about {epoch_seconds:.0f} s, so all fit")
    return Choice(
        fitting,
        f"an epoch takes about {epoch_seconds:.0f} s, and {seconds:.0f} s are left for training; "
        f"without the limit {epochs}",
    )


def random_start() -> dict[str, Choice]:
    """Choose what random weights need, by dotted name: everything learns, at one rate."""
    return {
        **_random_rates(),
        "freeze.policy": Choice("none", "random weights give no features to probe"),
        "freeze.stages": Choice(0, "likewise"),
        "freeze.batchnorm": _RANDOM_BATCHNORM,
    }


def choose_image_size(
    shorter_side_px: float | None, *, native_size_px: int, expects_it: bool
) -> Choice:
    """Choose the side of the square that the network sees.

    Args:
        shorter_side_px: of the middle image; None if unknown.
        native_size_px: what the backbone was made for.
        expects_it: whether it brings weights that do best at that size.
    """
    if expects_it or shorter_side_px is None:
        return Choice(native_size_px, "what the backbone was made for")
    sizes = [size for size in _SIZES_PX if size <= shorter_side_px] or [_SIZES_PX[0]]
    return Choice(max(sizes), f"the images have {shorter_side_px:.0f} px; at most 128")


def choose_augmentation(num_images: int) -> Choice:
    """Choose one of the options of ``augmentation``, for ``num_images`` to train on."""
    if num_images < _LIGHT_FROM_IMAGES:
        return Choice("standard", f"{num_images:,} images to train on, seen several times each")
    return Choice("light", f"{num_images:,} images to train on, seen few times each")


def choose_warmup(epochs: int) -> Choice:
    """Choose the epochs in which the rates rise (Goyal et al. 2017)."""
    return Choice(round(min(1.0, 0.1 * epochs), 2), "a tenth of the training, at most one epoch")


def describe(choices: Mapping[str, Choice]) -> dict[str, str]:
    """Put each choice into words: ``value (reason)``."""
    return {key: f"{choice} ({choice.reason})" for key, choice in choices.items()}


def _batch_size(facts: Facts) -> Choice:
    largest = max(2, int(facts.num_images * _MAX_BATCH_SHARE))
    size = min(_BATCH_SIZE, 2 ** int(math.log2(largest)))
    reason = "usual for fine-tuning; larger batches want other rates"
    if size < _BATCH_SIZE:
        reason = f"{facts.num_images:,} images to train on make at least six steps an epoch"
    # Each process gets as many; of fewer images than processes none can be filled.
    shared = facts.num_images // facts.world_size or 1
    size = min(max(2, size // facts.world_size), shared) * facts.world_size
    return Choice(min(size, max(facts.num_images, 1)), reason)


def _epochs(facts: Facts) -> Choice:
    epochs = next((n for most, n in _EPOCHS if facts.num_images < most), _EPOCHS_BEYOND)
    reason = f"{facts.num_images:,} images to train on, from pretrained weights"
    if not facts.is_pretrained:
        epochs *= _SCRATCH_FACTOR
        reason = f"{facts.num_images:,} images to train on, from random weights"
    if facts.policy == "gradual" and epochs < _EPOCHS_GRADUAL:
        return Choice(_EPOCHS_GRADUAL, f"{reason}; stages open one by one")
    return Choice(epochs, reason)


def _rates(facts: Facts) -> dict[str, Choice]:
    if not facts.is_pretrained or (facts.is_embedded and not facts.starts_from_probe):
        return _random_rates(is_embedded=facts.is_pretrained)
    if facts.is_embedded:  # see benchmarks/RESULTS.md, "What the embedded weights are worth"
        return {
            "optimizer.lr": Choice(1e-3, "the embedded weights know drawings, and no photograph"),
            "optimizer.backbone_lr_factor": Choice(1.0, "likewise: the backbone has much to learn"),
            "optimizer.layer_decay": Choice(0.8, "early stages are general; 0.7 to 0.9 is usual"),
        }
    if facts.starts_from_probe:
        return {
            "optimizer.lr": Choice(1e-4, "the head is fitted already (LP-FT, Kumar et al. 2022)"),
            "optimizer.backbone_lr_factor": Choice(0.33, "pretrained weights need little"),
            "optimizer.layer_decay": Choice(0.75, "early stages are general; 0.7 to 0.9 is usual"),
        }
    return {
        "optimizer.lr": Choice(3e-3, "the head starts at zero"),
        "optimizer.backbone_lr_factor": Choice(0.033, "pretrained weights need little"),
        "optimizer.layer_decay": Choice(0.75, "early stages are general; 0.7 to 0.9 is usual"),
    }


def _random_rates(*, is_embedded: bool = False) -> dict[str, Choice]:
    start, keeps = "from random weights", "nothing is pretrained, so nothing to keep"
    if is_embedded:
        start, keeps = "as from random weights", "the embedded ones know drawings alone"
    return {
        "optimizer.lr": Choice(3e-3, start),
        "optimizer.backbone_lr_factor": Choice(1.0, keeps),
        "optimizer.layer_decay": Choice(1.0, "likewise"),
    }


def _batchnorm(facts: Facts, batch_size: int) -> Choice:
    if not facts.is_pretrained:
        return _RANDOM_BATCHNORM
    if facts.is_embedded and not facts.starts_from_probe:
        return Choice("train", "the embedded statistics are those of drawings")
    if batch_size // facts.world_size < _BATCHNORM_FROM_BATCH:
        return Choice("frozen", f"{batch_size} images a batch say little about a distribution")
    if facts.num_images < _BATCHNORM_FROM_IMAGES:
        return Choice(
            "frozen", f"{facts.num_images:,} images: the pretrained statistics are better"
        )
    return Choice("train", f"{facts.num_images:,} images are enough for statistics of their own")


def _mixup(facts: Facts) -> Choice:
    if facts.num_images < _MIXUP_FROM_IMAGES:
        return Choice(0.0, "fewer than 20,000 images (BiT-HyperRule)")
    return Choice(0.1, "20,000 images or more (BiT-HyperRule)")


def _patience(epochs: int, starts_from_probe: bool) -> Choice:
    if not starts_from_probe:
        return Choice(None, "without a probe to fall back on, the schedule is trained to its end")
    patience = max(2, round(_PATIENCE_SHARE * epochs))
    return Choice(patience, "two fifths of the epochs; the probe is kept if nothing beats it")


def _ema(steps: int) -> Choice:
    decay = min(1 - 1 / max(2.0, 0.1 * steps), 0.9999)  # 1 would be no average
    return Choice(round(decay, 4), f"remembers a tenth of the {steps} steps")
