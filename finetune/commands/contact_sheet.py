"""A picture of what a training will see; used by ``train`` and ``inspect``."""

from pathlib import Path

from finetune.data.batches import epoch_order
from finetune.data.contact_sheet import write_contact_sheet
from finetune.data.discover import Sample
from finetune.data.labelled_images import LabelledImages, Rounded
from finetune.data.preprocess import Preprocess

COLUMNS = 8
EPOCHS_SHOWN = 3


def draw_contact_sheet(
    path: Path, samples: list[Sample], images: LabelledImages, preprocess: Preprocess
) -> None:
    """Draw some training images as validation would see them, above what training sees.

    Args:
        path: the PNG.
        samples: of ``images``, in the same order.
        images: of the training split.
        preprocess: of validation.
    """
    chosen = choose(samples, images.seed)
    resize = Rounded(preprocess)
    write_contact_sheet(
        path,
        originals=[resize(images.decode(index)) for index in chosen],
        labels=[", ".join(samples[index].labels) for index in chosen],
        rows=[
            [images[epoch, index][0].permute(1, 2, 0).numpy() for index in chosen]
            for epoch in range(EPOCHS_SHOWN)
        ],
    )


def choose(samples: list[Sample], seed: int) -> list[int]:
    """Choose up to ``COLUMNS`` images, each class in turn; return their indices, by class."""
    by_label: dict[tuple[str, ...], list[int]] = {}
    for index in epoch_order(len(samples), seed=seed, epoch=0):
        by_label.setdefault(samples[index].labels, []).append(index)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < min(COLUMNS, len(samples)):
        rest = [indices[turn] for _, indices in sorted(by_label.items()) if turn < len(indices)]
        chosen += rest[: COLUMNS - len(chosen)]
        turn += 1
    return sorted(chosen, key=lambda index: samples[index].labels)
