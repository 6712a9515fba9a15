"""Every mistake is one sentence and status 2, before weights are loaded and images are opened."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file

import finetune.data.audit
import finetune.data.labelled_images
import finetune.models.backbones
from finetune.cli import _compose, _prepare, _tokens, main
from finetune.commands import refusals
from finetune.commands.refusals import check_disk_space, checkpoint_bytes
from finetune.config import TrainConfig
from finetune.errors import ModelError, RunError
from finetune.models.backbones import create_backbone, outline_backbone
from finetune.validation import validate

TWO_PROCESSES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
VIT = ["model=nano", "model.backbone=vit_tiny_patch16_224"]


class Mistake(NamedTuple):
    """What was typed, what is answered, and what had to be read to know it."""

    words: Sequence[str]
    expected: str
    opens_images: bool = False
    loads_weights: bool = False


MISTAKES = {
    "a key that is none": Mistake(["optimizer.rate=1"], "optimizer.rate: no such key"),
    "a value out of range": Mistake(["optimizer.lr=0"], "optimizer.lr: got 0"),
    "an option that is none": Mistake(["head=lineal"], "Did you mean `linear`?"),
    "a name that is taken": Mistake(["name=taken"], "taken is there already"),
    "a folder of runs in a file": Mistake(["runs={file}/runs"], "cannot be written"),
    "runs/latest is no link": Mistake(["runs={latest}"], "latest is no link"),
    "an unknown backbone": Mistake(["model.backbone=resnet81"], "Did you mean `resnet18`?"),
    "an unknown tag": Mistake(["model.backbone=resnet18.a1"], "the tags of `resnet18` are"),
    "a backbone without pretraining": Mistake(
        ["model.backbone=botnet50ts_256", "model.pretrained=true"], "timm has none for it"
    ),
    "weights that are not there": Mistake(["model.weights=no.pth"], "there is no file no.pth"),
    "weights by a URL": Mistake(["model.weights=https://x/y.pth"], "expected a file. Download it"),
    "weights of no known suffix": Mistake(["model.weights={file}"], "expected a name in"),
    "weights that are damaged": Mistake(["model.weights={damaged}"], "damaged or no safetensors"),
    "weights that hold code": Mistake(["model.weights={code}"], "holds a Python object"),
    "weights of another backbone": Mistake(
        ["model.backbone=resnet34", "model.weights={weights}"], "does not fit this backbone"
    ),
    "a size that the backbone cannot take": Mistake(
        ["model.backbone=inception_v3"], "cannot take images of 32 px"
    ),
    "every stage frozen": Mistake(["freeze.stages=5"], "nothing of it would learn"),
    "no BatchNorm to train": Mistake([*VIT, "freeze=batchnorm_only"], "has no BatchNorm"),
    "an unknown optimizer": Mistake(["optimizer.name=adamx"], "optimizer.name: got `adamx`"),
    "an optimizer of second order": Mistake(["optimizer.name=adahessian"], "second derivatives"),
    "an unknown transform": Mistake(
        ["augmentation.transforms=[{{name: Flip}}]"], "transforms[0].name: got `Flip`"
    ),
    "an unknown transform, its size open": Mistake(
        ["augmentation.transforms=[{{name: Flip}}]", "model.image_size_px=auto"],
        "transforms[0].name: got `Flip`",
    ),
    "transforms that leave another size": Mistake(
        ["augmentation.transforms=[{{name: HorizontalFlip}}]"], "End with a transform that sets"
    ),
    "a logger that is not installed": Mistake(["logger=wandb"], "logger=wandb needs another"),
    "a GPU where there is none": Mistake(["trainer=gpu"], "torch finds no CUDA device"),
    "a rate found by two processes": Mistake([*TWO_PROCESSES, "optimizer.lr=find"], "one process"),
    "a batch found by two processes": Mistake(
        [*TWO_PROCESSES, "trainer.batch_size=find"], "looks at one device"
    ),
    "a batch that is not divisible": Mistake(
        [*TWO_PROCESSES, "trainer.batch_size=5"], "multiple of the 2 processes, such as 6"
    ),
    "a batch of one to normalise over": Mistake(
        ["trainer.batch_size=1", "freeze.batchnorm=train"], "BatchNorm needs at least two"
    ),
    "folds on two devices": Mistake(
        [*TWO_PROCESSES, "dataset.folds=2", "dataset.fold=all"], "which runs on one device"
    ),
    "a cache in a file": Mistake(["dataset.cache=disk", "cache_folder={file}"], "cannot be made"),
    "no such folder": Mistake(["dataset.root={data}s"], "no such folder"),
    "a folder of one class": Mistake(["dataset.root={one}"], "one class folder"),
    "a class without images": Mistake(["dataset.root={hollow}"], "holds no image"),
    "images without class folders": Mistake(["dataset.root={data}/a"], "but no class folders"),
    "one image in each class": Mistake(["dataset.root={single}"], "no image is left to validate"),
    "a group pattern that fits nothing": Mistake(["dataset.group_pattern=zzz"], "matches no path"),
    "more folds than groups": Mistake(
        ["dataset.folds=5", "dataset.group_pattern=[ab]/"], "too few for 5 folds"
    ),
    "labels for which a folder has no words": Mistake(["task=multilabel"], "give a table"),
    "a balance for one label each": Mistake(
        ["dataset.manifest={table}", "task=multilabel", "dataset.balance=sampler"],
        "needs one class per image",
    ),
    "a table without a column": Mistake(
        ["dataset.manifest={table}", "dataset.label_column=class"], "no column `class`"
    ),
    "a table of files that are elsewhere": Mistake(
        ["dataset.manifest={table}", "dataset.root={one}"], "has no readable image to train on"
    ),
    "a split file of other images": Mistake(
        ["dataset.split_file={foreign}"], "which the data lacks"
    ),
    "a batch larger than the images": Mistake(
        ["trainer.batch_size=99"], "there are at most 23 images to train on"
    ),
    "a batch larger than a given split": Mistake(
        ["trainer.batch_size=21", "dataset.split_file={split}"], "there are 20 images to train on"
    ),
    "more processes than validation images": Mistake(
        [*TWO_PROCESSES, "trainer.devices=5", "trainer.batch_size=5", "dataset.split_file={split}"],
        "there are 4 images to validate on; use at most 4",
    ),
    "a metric that validation cannot change": Mistake(
        ["dataset.split_file={split}", "dataset.monitor=auroc"], "show a. Validate with"
    ),
    "no room for the checkpoints": Mistake(
        ["model.backbone=vit_giant_patch14_dinov2"], "but its disk has 100 MB free"
    ),
    "one image under two classes": Mistake(
        ["dataset.root={conflict}"], "conflicting_labels", opens_images=True
    ),
    "a class of damaged images": Mistake(
        ["dataset.root={broken}"], "no readable image to train on", opens_images=True
    ),
    "a batch larger than what copies leave": Mistake(
        ["trainer.batch_size=22"], "images to train on; use at most", opens_images=True
    ),
    "weights that are not finite": Mistake(
        ["model.weights={nan}"], "has NaN or infinity", opens_images=True, loads_weights=True
    ),
}


@dataclass
class Seen:
    """What was opened and loaded."""

    images: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Spy on what opens images and loads weights."""
    seen = Seen()

    def spy(module: Any, name: str, into: list[str]) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def called(*arguments: Any, **named: Any) -> Any:
            into.append(name)
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, called)

    spy(finetune.data.audit, "examine_files", seen.images)
    spy(finetune.data.labelled_images, "decode_image", seen.images)
    spy(finetune.models.backbones, "load_weights", seen.weights)
    return seen


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders and files to make mistakes with."""
    folder = tmp_path_factory.mktemp("places")
    names = ("data", "one", "hollow", "single", "conflict", "broken", "latest")
    places = {name: folder / name for name in names}
    for index, label in enumerate("ab"):
        for number in range(12):
            save_image(places["data"] / label / f"{number:02}.png", 12 * index + number)
    save_image(places["one"] / "a" / "0.png", 0)
    save_image(places["hollow"] / "a" / "0.png", 0)
    (places["hollow"] / "b").mkdir()
    for index, label in enumerate("ab"):
        save_image(places["single"] / label / "0.png", index)
    shutil.copytree(places["data"], places["conflict"])
    shutil.copy(places["conflict"] / "a" / "00.png", places["conflict"] / "b" / "copy.png")
    shutil.copytree(places["data"], places["broken"])
    for path in (places["broken"] / "b").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    (places["latest"] / "latest").mkdir(parents=True)
    paths = sorted(path.relative_to(places["data"]) for path in places["data"].rglob("*.png"))
    tables = {
        "table": ["path,label", *(f"{path},{path.parent}" for path in paths)],
        "split": ["path,label,split"],
        "foreign": ["path,label,split", "c/0.png,a,train"],
    }
    for index, path in enumerate(paths):
        tables["split"].append(f"{path},{path.parent},{'val' if index < 4 else 'train'}")
    for name, rows in tables.items():
        places[name] = folder / f"{name}.csv"
        places[name].write_text("\n".join(rows))
    places["file"] = folder / "file.txt"
    places["file"].write_text("no folder")
    places["damaged"] = folder / "damaged.safetensors"
    places["damaged"].write_bytes(b"\x10" * 100)
    places["code"] = folder / "code.pth"
    torch.save({"state_dict": Seen()}, places["code"])
    places["weights"] = folder / "resnet18.safetensors"
    save_file(create_backbone("resnet18").state_dict(), places["weights"])
    places["nan"] = folder / "nan.safetensors"
    state = create_backbone("nano").state_dict()
    save_file({**state, "conv1.0.weight": state["conv1.0.weight"] * torch.nan}, places["nan"])
    return places


def replaced(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Put words in place of those with the same key."""
    keys = {word.partition("=")[0] for word in others}
    return [word for word in words if word.partition("=")[0] not in keys] + list(others)


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed))
    PIL.Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)


def test_what_is_refused_early_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    images = sum(mistake.opens_images for mistake in MISTAKES.values())
    weights = sum(mistake.loads_weights for mistake in MISTAKES.values())
    with capsys.disabled():
        print(
            f"\n{len(MISTAKES)} mistakes, each one sentence and status 2: "
            f"{len(MISTAKES) - images} before an image is opened, "
            f"{len(MISTAKES) - weights} before weights are loaded"
        )
    assert len({mistake.expected for mistake in MISTAKES.values()}) > 45
    assert (images, weights) == (4, 1)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_before_anything_large_is_read(
    name: str,
    places: dict[str, Path],
    seen: Seen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mistake = MISTAKES[name]
    (tmp_path / "runs" / "data" / "taken").mkdir(parents=True)
    monkeypatch.setattr(refusals, "_free_bytes", lambda folder: 100_000_000)
    monkeypatch.setattr("finetune.training.loggers.find_spec", lambda module: None)
    words = ["train", "dataset=folder", "dataset.root={data}", "model=nano", "trainer=cpu"]
    words += [
        "dataset.workers=0",
        "model.pretrained=false",
        "runs={runs}",
        "model.image_size_px=32",
        "cache_folder={runs}/cache",
    ]
    typed = [word.format(runs=tmp_path / "runs", **places) for word in mistake.words]
    known = [word.format(runs=tmp_path / "runs", **places) for word in words]

    assert main(replaced(known, typed)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert mistake.expected in message
    assert "Traceback" not in message
    assert bool(seen.weights) == mistake.loads_weights
    assert bool(seen.images) == mistake.opens_images
    assert not list(tmp_path.rglob("run.json"))


def settings(*words: str) -> TrainConfig:
    tokens, _ = _tokens("train", ["dataset=folder", "dataset.root=x", "model=nano", *words])
    values, _ = _compose("train", _prepare("train", tokens, None, is_multirun=False), None)
    return validate(TrainConfig, values)


def test_a_checkpoint_is_as_large_as_was_said(trained: Path, quick: tuple[str, ...]) -> None:
    backbone = outline_backbone("nano", image_size_px=32)
    said = checkpoint_bytes(settings(*quick), backbone, num_classes=2)
    for name in ("best.ckpt", "last.ckpt"):
        assert (trained / "checkpoints" / name).stat().st_size == pytest.approx(said, rel=0.05)


@pytest.mark.parametrize(
    ("words", "copies"),
    [
        ([], 4),  # weights, average, two moments
        (["trainer.ema_decay=0"], 3),
        (["optimizer=sgd"], 3),
        (["optimizer=sgd", "optimizer.momentum=0"], 2),
        (["optimizer.name=lion"], 3),
        (["freeze=backbone"], 1),
        (["freeze=backbone", "head=cosine"], 2),
        (["freeze=batchnorm_only"], 2),
    ],
)
def test_a_checkpoint_holds_what_learns_several_times(words: list[str], copies: int) -> None:
    backbone = outline_backbone("nano")
    weights = sum(t.numel() * t.element_size() for t in backbone.state_dict().values())
    said = checkpoint_bytes(settings(*words), backbone, num_classes=2)
    assert said == pytest.approx(copies * weights, rel=0.02)


def test_frozen_stages_have_no_state() -> None:
    backbone = outline_backbone("nano")
    sizes = [
        checkpoint_bytes(settings(f"freeze.stages={count}"), backbone, num_classes=2)
        for count in (0, 1, 4)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize(("trainings", "files"), [(1, 3), (5, 11)])
def test_each_fold_leaves_two_checkpoints(
    trainings: int, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, backbone = settings(f"runs={tmp_path}"), outline_backbone("nano")
    needed = files * checkpoint_bytes(config, backbone, num_classes=2)
    monkeypatch.setattr(refusals, "_free_bytes", lambda folder: needed)
    check_disk_space(config, backbone, num_classes=2, trainings=trainings)
    monkeypatch.setattr(refusals, "_free_bytes", lambda folder: needed - 1)
    with pytest.raises(RunError, match=f"{files} files of 14 MB.* Make room there"):
        check_disk_space(config, backbone, num_classes=2, trainings=trainings)


def test_the_disk_that_is_asked_is_that_of_the_runs(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    check_disk_space(settings(f"runs={tmp_path}"), outline_backbone("nano"), num_classes=2)


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_fit_are_not_refused(architecture: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = timm.create_model(architecture, num_classes=3).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    outline = outline_backbone(architecture, weights=path)
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    create_backbone(architecture, weights=path)
    save_file(dict(list(outline_like(state).items())[1:]), tmp_path / "less.safetensors")
    with pytest.raises(ModelError, match=r"does not fit this backbone.\n  1 missing"):
        outline_backbone(architecture, weights=tmp_path / "less.safetensors")


def outline_like(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


def test_a_backbone_that_needs_values_is_built_with_random_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = finetune.models.backbones._create_nano

    def with_values() -> torch.nn.Module:
        torch.zeros(1).item()  # which `meta` refuses
        return built()

    monkeypatch.setattr(finetune.models.backbones, "_create_nano", with_values)
    backbone = outline_backbone("nano")
    assert {parameter.device.type for parameter in backbone.parameters()} == {"cpu"}
