"""From a data set's config to divided images."""

import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from finetune.commands.dataset import audit_images, find_images, paths_of, split_images
from finetune.config import DatasetConfig
from finetune.data.discover import ImageFolder
from finetune.data.split_file import write_split
from finetune.errors import ConfigError, DataError
from finetune.usage import CONF


def config(root: Path | None, **values: object) -> DatasetConfig:
    defaults = yaml.safe_load((CONF / "dataset" / "_base.yaml").read_text(encoding="utf-8"))
    settings = {**defaults, "root": root, "val_fraction": 0.25, "workers": 0, **values}
    return DatasetConfig.model_validate(settings)


def divided_folder(settings: DatasetConfig, seed: int = 0) -> ImageFolder:
    folder = find_images(settings, "multiclass")
    audit = audit_images(settings, folder, cache_folder=None, console=Console(quiet=True))
    return split_images(settings, folder, audit, task="multiclass", seed=seed)


def divide(settings: DatasetConfig, seed: int = 0) -> dict[str, list[str]]:
    divided = divided_folder(settings, seed)
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
        find_images(config(None), "multiclass")


def test_a_class_without_a_readable_image_is_an_error(stripes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(stripes, root)
    (root / "broken").mkdir()
    (root / "broken" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match='"broken" has no readable image'):
        divide(config(root))


def test_a_group_is_on_one_side_for_any_seed(stripes: Path) -> None:
    settings = config(stripes, group_pattern=r"/(\d\d)\d\.png")
    for seed in range(3):
        folder = divided_folder(settings, seed)
        sides: dict[str | None, set[str | None]] = {}
        for sample in folder.samples:
            sides.setdefault(sample.group, set()).add(sample.split)
        assert len(sides) == 4
        assert all(len(splits) == 1 for splits in sides.values())


def test_folds_cover_every_image_once(stripes: Path) -> None:
    seen: list[str] = []
    for fold in range(4):
        parts = divide(config(stripes, folds=4, fold=fold))
        assert len(parts["val"]) == 20
        assert not set(parts["val"]) & set(parts["train"])
        seen += parts["val"]
    assert len(seen) == len(set(seen)) == 80


def test_a_split_file_is_followed_and_what_it_lacks_is_named(stripes: Path, tmp_path: Path) -> None:
    first = divided_folder(config(stripes, val_fraction=0.5), seed=3)
    file = tmp_path / "split.csv"
    write_split(file, first.samples[1:])
    again = divided_folder(config(stripes, split_file=file))
    assert again.samples == first.samples[1:]
    assert [(item.path, item.reason) for item in again.skipped] == [
        (first.samples[0].path, "not in the split file")
    ]


def test_a_public_set_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    missing = config(tmp_path / "medical", download="pneumonia_mnist")
    with pytest.raises(DataError, match="finetune data dataset=medical"):
        find_images(missing, "multiclass")


def test_several_labels_need_a_manifest(stripes: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.manifest=labels\.csv"):
        find_images(config(stripes), "multilabel")


def test_a_split_file_of_other_images_is_named(stripes: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.csv"
    file.write_text("path,label,split\nlying/gone.png,lying,train\n")
    with pytest.raises(DataError, match=rf"^dataset\.split_file={file}: .*lying/gone\.png"):
        divided_folder(config(stripes, split_file=file))
