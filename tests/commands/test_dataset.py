"""From a data set's config to divided images."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from finetune.commands.dataset import audit_images, find_images, paths_of, split_images
from finetune.config import DatasetConfig
from finetune.errors import ConfigError, DataError


def config(root: Path | None, **values: object) -> DatasetConfig:
    settings = {
        "source": "folder", "name": None, "root": root, "val_fraction": 0.25, "test_fraction": 0.0,
        "monitor": "accuracy", "max_megapixels": 200, "workers": 0, **values,
    }  # fmt: skip
    return DatasetConfig.model_validate(settings)


def divide(settings: DatasetConfig, seed: int = 0) -> dict[str, list[str]]:
    folder = find_images(settings)
    audit = audit_images(settings, folder, console=Console(quiet=True))
    divided = split_images(settings, folder, audit, seed=seed)
    return {
        split: [path.relative_to(divided.root).as_posix() for path in paths_of(divided, split)]
        for split in ("train", "val", "test")
    }


def test_equal_files_are_on_one_side_for_any_seed(stripes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(stripes, root)
    for index in range(20):
        shutil.copy(root / "lying" / f"{index:03d}.png", root / "lying" / f"copy {index:03d}.png")
    sides = set()
    for seed in range(5):
        parts = divide(config(root), seed)
        for index in range(20):
            pair = {f"lying/{index:03d}.png", f"lying/copy {index:03d}.png"}
            together = [split for split, paths in parts.items() if pair & set(paths)]
            assert len(together) == 1, (seed, index)
            sides.update(together)
        assert 25 <= len(parts["val"]) <= 27  # a quarter of 60 and of 40
    assert sides == {"train", "val"}


def test_splits_that_the_folder_brings_are_kept(stripes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "valid"):
        shutil.copytree(stripes, root / split)
    parts = divide(config(root))
    assert len(parts["train"]) == len(parts["val"]) == 80
    assert all(path.startswith("valid/") for path in parts["val"])


def test_a_test_split_stays_and_validation_comes_from_training(
    stripes: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(stripes, root / "train")
    shutil.copytree(stripes, root / "test")
    parts = divide(config(root))
    assert len(parts["test"]) == 80
    assert len(parts["train"]) + len(parts["val"]) == 80
    assert all(path.startswith("train/") for path in parts["val"])
    assert len(parts["val"]) == 20


def test_without_a_root_the_message_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.root=PATH"):
        find_images(config(None))


def test_a_class_without_a_readable_image_is_an_error(stripes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(stripes, root)
    (root / "broken").mkdir()
    (root / "broken" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match='"broken" has no readable image'):
        divide(config(root))
