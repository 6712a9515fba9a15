"""fastai: ``vision_learner(...).fine_tune(epochs)``, with the transforms of its vision tutorial.

One epoch with a frozen body, then the epochs asked for; the last one is kept.

Source: https://docs.fast.ai/tutorial.vision.html
"""

from fastai.metrics import BalancedAccuracy
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Recorder,
    Resize,
    accuracy,
    aug_transforms,
    resnet18,
    set_seed,
    vision_learner,
)
from record import Record, parse


class TakeNotes(Callback):
    """Pass on what the table of epochs shows."""

    order = Recorder.order + 20  # after the table itself

    def __init__(self, record: Record) -> None:
        self.record = record

    def after_epoch(self) -> None:
        """Take the two metrics, which come last."""
        self.record.add_scores(*(float(value) for value in self.recorder.values[-1][-2:]))


def main() -> None:
    """Train and report."""
    arguments = parse(__doc__)
    set_seed(arguments.seed)
    record = Record(keeps="last")
    loaders = ImageDataLoaders.from_folder(
        arguments.folder,
        train="train",
        valid="val",
        bs=arguments.batch_size,
        item_tfms=Resize(460),
        batch_tfms=aug_transforms(size=224),
    )
    learner = vision_learner(loaders, resnet18, metrics=[accuracy, BalancedAccuracy()])
    learner.fine_tune(arguments.epochs, cbs=TakeNotes(record))
    record.print()


if __name__ == "__main__":
    main()
