"""What a network sees, with and without a cache."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from finetune.cli import _compose, _prepare, _tokens
from finetune.commands.components import build_hardware
from finetune.commands.dataset import audit_images, find_images, split_images
from finetune.commands.loaders import build_data
from finetune.commands.recipe import settle_recipe
from finetune.commands.settle import settle
from finetune.config import TrainConfig
from finetune.data.datamodule import ImageDataModule
from finetune.data.preprocess import Preprocess
from finetune.validation import validate

PREPROCESS = Preprocess(8, "crop", 0.875, "bilinear", (0, 0, 0), (1, 1, 1))


def data_of(root: Path, folder: Path, *words: str) -> ImageDataModule:
    tokens, _ = _tokens("train", [f"dataset.root={root}", f"cache_folder={folder}", *words])
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    config = validate(TrainConfig, values)
    quiet = Console(quiet=True)
    images = find_images(config.dataset, config.task)
    audit = audit_images(config.dataset, images, cache_folder=config.cache_folder, console=quiet)
    images = split_images(config.dataset, images, audit, task=config.task, seed=0)
    config, _ = settle(config, images)
    hardware = build_hardware(config)
    config, _ = settle_recipe(config, images, audit, hardware)
    return build_data(config, images, audit, PREPROCESS, hardware)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_keeps_what_is_decoded(kind: str, stripes: Path, tmp_path: Path) -> None:
    plain = data_of(stripes, tmp_path)
    kept = data_of(stripes, tmp_path, f"dataset.cache={kind}")
    assert plain.train.cache is None
    assert kept.train.cache is not None
    for _ in range(2):
        for index in range(len(plain.val)):
            image, label = kept.val[0, index]
            expected, true = plain.val[0, index]
            assert label == true
            assert image.dtype == expected.dtype
            # What is kept are whole numbers.
            assert (image - expected).abs().max() <= 0.5
        first = [kept.train[0, index][0] for index in range(len(kept.train))]
    assert kept.train.cache.describe().images == len(kept.train)
    again = [kept.train[0, index][0] for index in range(len(kept.train))]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_images_that_need_no_reducing_are_the_same_with_a_cache(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.commands.loaders.SIDE_FACTOR", 3)  # 3 * 8 px, as they are
    plain = data_of(stripes, tmp_path)
    kept = data_of(stripes, tmp_path, "dataset.cache=disk")
    for index in range(20):
        assert torch.equal(plain.train[1, index][0], kept.train[1, index][0])
        assert torch.equal(plain.train[1, index][0], kept.train[1, index][0])


def test_all_folds_share_a_cache(stripes: Path, tmp_path: Path) -> None:
    words = ("dataset.cache=disk", "dataset.folds=2")
    first = data_of(stripes, tmp_path, *words, "dataset.fold=0")
    for index in range(len(first.train)):
        first.train[0, index]
    second = data_of(stripes, tmp_path, *words, "dataset.fold=1")
    assert second.train.cache is not None
    assert second.train.cache.describe().images == len(first.train) == 40
    assert len(list((tmp_path / "images").iterdir())) == 2  # of training, of validation


def test_the_sampler_is_used_where_it_is_asked_for(stripes: Path, tmp_path: Path) -> None:
    assert not data_of(stripes, tmp_path).is_balanced
    assert data_of(stripes, tmp_path, "dataset.balance=sampler").is_balanced
