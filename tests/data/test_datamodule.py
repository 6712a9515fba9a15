from itertools import chain
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from finetune.data.augment import Augmentation
from finetune.data.batches import epoch_order
from finetune.data.datamodule import ImageDataModule
from finetune.data.discover import Sample
from finetune.data.labelled_images import Augmented, LabelledImages, make_targets

SIZE_PX = 16
COUNT = 22
NAMES = ("even", "odd")
AUGMENTATION = Augmentation(
    [
        {"name": "RandomResizedCrop", "size": ["image_size_px", "image_size_px"]},
        {"name": "ColorJitter", "p": 1.0},
    ],
    SIZE_PX,
)


class Watching(LightningModule):
    """Train nothing and keep every batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.epochs = []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, _):
        self.epochs[-1].append(batch)
        return self.weight.sum()

    def validation_step(self, *_):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def as_it_is(image, _seed):
    """Keep the image; what it shows tells which one it is."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Images of one grey each, their index, labelled by its parity."""
    root = tmp_path_factory.mktemp("flat")
    samples = []
    for index in range(COUNT):
        path = f"{NAMES[index % 2]}/{index:02d}.png"
        (root / path).parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (4, 4), (index,) * 3).save(root / path)
        samples.append(Sample(path, (NAMES[index % 2],), "train"))
    return root, tuple(samples)


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    """Images that are all the same, so that they differ by their augmentation alone."""
    root = tmp_path_factory.mktemp("equal")
    (root / "even").mkdir()
    smooth = np.random.default_rng(0).random((6, 8, 3))
    image = (np.kron(smooth, np.ones((5, 5, 1))) * 255).astype(np.uint8)
    samples = []
    for index in range(COUNT):
        path = f"even/{index:02d}.png"
        PIL.Image.fromarray(image).save(root / path)
        samples.append(Sample(path, ("even",), "train"))
    return root, tuple(samples)


def images_of(source, transform=None, seed=3):
    root, samples = source
    transform = transform or as_it_is
    targets = make_targets(samples, NAMES, is_multilabel=False)
    return LabelledImages(root, samples, targets, transform=transform, seed=seed, max_megapixels=1)


def watch(images, *, workers, epochs, batch_size=4):
    """Train for real and return the batches by epoch."""
    data = ImageDataModule(images, images, batch_size=batch_size, workers=workers, seed=images.seed)
    module = Watching()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)
    return module.epochs


def indices_in(epoch):
    """Read which images an epoch of `flat` showed, in order."""
    return [int(image[0, 0, 0]) for images, _ in epoch for image in images]


quietly = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec"
)


@quietly
def test_each_epoch_of_a_training_has_its_own_order(flat):
    alone = watch(images_of(flat), workers=0, epochs=2)
    assert [len(epoch) for epoch in alone] == [COUNT // 4] * 2
    shown = [indices_in(epoch) for epoch in alone]
    for epoch, indices in enumerate(shown):
        assert len(set(indices)) == len(indices) == 20
        assert indices == epoch_order(COUNT, seed=3, epoch=epoch)[:20]
    assert shown[0] != shown[1]
    for images, labels in alone[1]:
        assert [int(image[0, 0, 0]) % 2 for image in images] == labels.tolist()

    again = watch(images_of(flat), workers=0, epochs=2)
    with_workers = watch(images_of(flat), workers=2, epochs=2)
    assert [indices_in(epoch) for epoch in again] == shown
    assert [indices_in(epoch) for epoch in with_workers] == shown
    other_seed = watch(images_of(flat, seed=4), workers=0, epochs=1)
    assert indices_in(other_seed[0]) != shown[0]


@quietly
def test_augmentation_is_drawn_anew_for_each_sample_and_epoch(equal):
    def draws(workers):
        epochs = watch(images_of(equal, Augmented(AUGMENTATION)), workers=workers, epochs=3)
        images = [image for epoch in epochs for images, _ in epoch for image in images]
        assert all(image.shape == (3, SIZE_PX, SIZE_PX) for image in images)
        assert all(image.dtype == torch.uint8 for image in images)
        return [image.numpy().tobytes() for image in images]

    alone = draws(0)
    assert len(alone) == 3 * 20
    assert len(set(alone)) >= 0.99 * len(alone)
    assert draws(0) == alone
    assert draws(2) == alone


def pretend_rank(data, rank, world_size):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return data


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [3, 13, 20])
def test_validation_covers_each_image_once_over_all_processes(flat, world_size, count):
    root, samples = flat
    images = images_of((root, samples[:count]))
    seen = []
    for rank in range(world_size):
        data = ImageDataModule(images, images, batch_size=5, workers=0, seed=0)
        loader = pretend_rank(data, rank, world_size).val_dataloader()
        batches = [pixels[:, 0, 0, 0].tolist() for pixels, _ in loader]
        assert len(batches) == len(loader)
        assert all(1 <= len(batch) <= 5 for batch in batches)
        seen += [index for batch in batches for index in batch]
    assert sorted(seen) == list(range(count))


def test_training_loaders_of_all_ranks_share_each_batch(flat):
    images = images_of(flat)

    def loader(rank, world_size):
        data = ImageDataModule(images, images, batch_size=6, workers=0, seed=3)
        return pretend_rank(data, rank, world_size).train_dataloader()

    alone = [pixels[:, 0, 0, 0].tolist() for pixels, _ in loader(0, 1)]
    ranks = [[pixels[:, 0, 0, 0].tolist() for pixels, _ in loader(rank, 3)] for rank in range(3)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize(("done", "epoch", "seen"), [(0, 4, 0), (2, 4, 2), (COUNT // 4, 5, 0)])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_batch_to_come_travels_in_the_checkpoint(flat, workers, done, epoch, seen):
    images = images_of(flat)
    data = ImageDataModule(images, images, batch_size=4, workers=0, seed=3)
    progress = SimpleNamespace(current=SimpleNamespace(ready=done))
    data.trainer = SimpleNamespace(
        current_epoch=4,
        num_training_batches=COUNT // 4,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    resumed = ImageDataModule(images, images, batch_size=4, workers=workers, seed=3)
    resumed.load_state_dict(data.state_dict())
    loader = resumed.train_dataloader()
    shown = [int(value) for batch, _ in loader for value in batch[:, 0, 0, 0]]
    whole = len(epoch_order(COUNT, seed=3, epoch=epoch)) // 4 * 4
    assert shown == epoch_order(COUNT, seed=3, epoch=epoch)[4 * seen : whole]
    assert len(loader) == COUNT // 4
    loader.batch_sampler.set_epoch(epoch + 1)
    shown = [int(value) for batch, _ in loader for value in batch[:, 0, 0, 0]]
    assert shown == epoch_order(COUNT, seed=3, epoch=epoch + 1)[:whole]
