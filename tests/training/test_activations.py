import copy
import os
import pickle
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from finetune.data.batches import TrainBatches, epoch_order
from finetune.data.discover import discover_folder
from finetune.data.labelled_images import LabelledImages, Resized, make_targets
from finetune.data.preprocess import Preprocess
from finetune.errors import RunError
from finetune.models.backbones import create_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import apply_frozen_mode, backbone_stages, set_frozen
from finetune.models.prefix import Split, split_backbone
from finetune.training.activations import (
    Activations,
    activation_bytes,
    compute_activations,
    stack_activations,
)

CPU = torch.device("cpu")
PREPROCESS = Preprocess(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
NUM_FROZEN = 3
BATCH = 4


@pytest.fixture(scope="module")
def images(stripes):
    """Eighteen, so that the last batch of four is not whole."""
    folder = discover_folder(stripes)
    samples = [*folder.samples[:9], *folder.samples[40:49]]
    return LabelledImages(
        folder.root,
        samples,
        make_targets(samples, folder.class_names, is_multilabel=False),
        transform=Resized(PREPROCESS),
        seed=0,
        max_megapixels=1,
    )


def make_classifier():
    torch.manual_seed(0)
    backbone = create_backbone("nano")
    classifier = Classifier(backbone, nn.Linear(192, 2)).to(memory_format=torch.channels_last)
    stages = backbone_stages(backbone)
    set_frozen(backbone, stages, NUM_FROZEN)
    classifier.train()
    apply_frozen_mode(backbone, stages, NUM_FROZEN)
    split = split_backbone(backbone, stages, NUM_FROZEN, example=torch.randn(2, 3, 32, 32))
    assert isinstance(split, Split)
    return classifier, split


def compute(prefix, images, folder=None, dtype=torch.float32, **others):
    arguments = {"batch_size": BATCH, "workers": 0, "device": CPU, **others}
    return compute_activations(
        prefix, images, normalise=PREPROCESS.normalise, dtype=dtype, folder=folder, **arguments
    )


def inputs(batch):
    return PREPROCESS.normalise(batch).contiguous(memory_format=torch.channels_last)


def train(model, parameters, data, dtype, collate=None):
    """Take eight steps, two epochs, and return the losses."""
    order = lambda epoch: epoch_order(len(data), seed=3, epoch=epoch)  # noqa: E731
    batches = TrainBatches(len(data), BATCH, order=order, rank=0, world_size=1)
    optimizer = torch.optim.SGD(parameters, 0.02, momentum=0.9)
    losses = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        for batch, targets in DataLoader(data, batch_sampler=batches, collate_fn=collate):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = nn.functional.cross_entropy(model(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6)], ids=["32", "bf16"]
)
def test_training_on_activations_is_training_on_images(images, tmp_path, dtype, tolerance):
    whole, _ = make_classifier()
    start = copy.deepcopy(whole.state_dict())
    expected = train(
        lambda batch: whole(inputs(batch)),
        [p for p in whole.parameters() if p.requires_grad],
        images,
        dtype,
    )
    rest, split = make_classifier()
    activations = compute(split.prefix, images, tmp_path, dtype)
    got = train(
        lambda batch: rest.head(split.suffix(batch)),
        [*split.suffix.parameters(), *rest.head.parameters()],
        activations,
        dtype,
        stack_activations,
    )
    assert got == pytest.approx(expected, abs=tolerance)
    # BatchNorm's running statistics are among these.
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(rest.state_dict()[key], value, rtol=0, atol=tolerance)
    moved = [k for k, v in start.items() if not torch.equal(v, rest.state_dict()[k])]
    assert any(key.startswith("backbone.layer3") for key in moved)
    assert not any(key.startswith(("backbone.conv1", "backbone.layer2")) for key in moved)


@pytest.mark.parametrize("is_on_disk", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32", "bf16"])
def test_a_batch_is_what_the_prefix_gives(images, tmp_path, is_on_disk, dtype):
    _, split = make_classifier()
    done = []
    activations = compute(
        split.prefix, images, tmp_path if is_on_disk else None, dtype, on_progress=done.append
    )
    assert len(activations) == len(images)
    assert done == [4, 8, 12, 16, 18]
    for draws in ([0, 1, 2, 3], [17, 5, 16, 2]):
        batch, targets = stack_activations([activations[(7, draw)] for draw in draws])
        pixels = torch.stack([images[(0, draw)][0] for draw in draws])
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            expected = split.prefix(inputs(pixels))
        assert batch.dtype == expected.dtype
        assert torch.equal(batch, expected)
        assert batch.stride() == expected.stride()
        assert targets.tolist() == [images.targets[draw] for draw in draws]
    assert torch.equal(activations[(0, 18 + 5)][0], activations[(1, 5)][0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_on_disk", [True, False])
def test_workers_see_the_same_and_keep_the_order(images, tmp_path, is_on_disk):
    _, split = make_classifier()
    activations = compute(split.prefix, images, tmp_path if is_on_disk else None)
    keys = [[(0, index) for index in range(start, start + 6)] for start in (0, 6, 12)]
    loader = DataLoader(
        activations, batch_sampler=keys, num_workers=2, collate_fn=stack_activations
    )
    batches = [batch for batch, _ in loader]
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in batches)
    assert torch.equal(torch.cat(batches), activations.activations)


def test_workers_that_decode_give_the_same(images):
    _, split = make_classifier()
    alone, shared = (compute(split.prefix, images, workers=workers) for workers in (0, 2))
    assert torch.equal(alone.activations, shared.activations)


class Plain(nn.Module):
    """Tokens ``[B, 3, 6]``, as of a transformer."""

    def forward(self, images):
        return images[:, :, :2, :3].flatten(2)


def test_activations_without_channels_are_kept_as_they_are(images, tmp_path):
    activations = compute(Plain(), images, tmp_path)
    batch, _ = stack_activations([activations[(0, index)] for index in range(18)])
    pixels = torch.stack([images[(0, index)][0] for index in range(18)])
    assert torch.equal(batch, Plain()(PREPROCESS.normalise(pixels)))
    assert batch.is_contiguous()


def test_the_prefix_is_left_in_eval_mode(images):
    classifier, split = make_classifier()
    classifier.train()
    before = copy.deepcopy(classifier.state_dict())
    compute(split.prefix, images)
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert classifier.backbone.layer4.training


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=0, max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 50),
)
def test_bytes_are_counted_before_they_are_taken(count, shape, dtype, num_images):
    example = torch.zeros(count, *shape, dtype=dtype)
    taken = torch.zeros(num_images, *shape, dtype=dtype)
    assert activation_bytes(example, num_images) == taken.numel() * taken.element_size()


@contextmanager
def small_files():
    """Let no file of this process grow beyond 10,000 bytes; the activations need 295,000.

    Within the block alone: pytest writes to a file too, where its output goes to one.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("can_reserve", [True, False])
def test_too_little_room_is_said_and_leaves_nothing(images, tmp_path, monkeypatch, can_reserve):
    if not can_reserve:
        monkeypatch.delattr(os, "posix_fallocate")
    _, split = make_classifier()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    said = r"18 images, 0\.00 GB, cannot be kept there: File too"
    with pytest.raises(RunError, match=said), small_files():
        compute(split.prefix, images, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_folder_that_is_not_there_is_named(images, tmp_path):
    with pytest.raises(RunError, match=r"nowhere: .*No such file or directory"):
        compute(Plain(), images, tmp_path / "nowhere")


def test_no_images_are_refused(images):
    empty = copy.copy(images)
    empty.paths = []
    with pytest.raises(ValueError, match="at least one"):
        compute(Plain(), empty)


def test_activations_do_not_travel(images):
    with pytest.raises(TypeError, match="workers=0"):
        pickle.dumps(compute(Plain(), images))


def test_a_killed_process_leaves_nothing(tmp_path):
    program = (
        "import os, sys, torch; from pathlib import Path\n"
        "from finetune.training.activations import _Store\n"
        "example = torch.zeros(1, 9)\n"
        "store = _Store(example, 4, Path(sys.argv[1])); store.write(example, 0)\n"
        "rows = store.read(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_outlives_the_store(tmp_path, images):
    activations = compute(Plain(), images, tmp_path)
    again = Activations(activations.activations, activations.targets)
    del activations
    assert again[(0, 0)][0].isfinite().all()
