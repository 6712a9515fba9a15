"""Every YAML file below ``conf/`` composes, validates and builds; found by a glob, counted."""

import functools
import io
import re
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from lightning.pytorch import Trainer
from rich.console import Console
from torch import nn

from finetune import cli
from finetune.commands.components import (
    build_hardware,
    build_module,
    build_preprocess,
    build_trainer,
    head_arguments,
    monitor_key,
    monitor_mode,
)
from finetune.commands.dataset import find_images
from finetune.commands.recipe import settle_recipe
from finetune.commands.settle import settle
from finetune.config import VERBS, InspectConfig, TrainConfig
from finetune.data.augment import Augmentation
from finetune.data.discover import ImageFolder, Sample
from finetune.errors import ConfigError
from finetune.evaluation.epoch import training_metrics
from finetune.models.backbones import NANO, create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.run import RunDirectory
from finetune.training.callbacks import EpochTable
from finetune.training.hardware import Hardware
from finetune.training.losses import create_loss
from finetune.training.optim import (
    create_optimizer,
    create_scheduler,
    parameter_groups,
    stage_rates,
)
from finetune.usage import CONF, group_options

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/[!_]*.yaml"))
NUM_CLASSES = 3
HAS_GPU = torch.cuda.is_available()


def of(group: str) -> list[str]:
    options = [option for owner, option in OPTIONS if owner == group]
    assert options, f"conf/{group} has no option"
    return options


@functools.cache
def compose(verb: str, *words: str) -> tuple[Any, str]:
    """Return what the command of a verb would get, and not run it."""
    jobs = []
    command = types.ModuleType("command")
    command.run = lambda *job: jobs.append(job)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, f"finetune.commands.{verb}", command)
        cli.run_verb(verb, words)
    (job,) = jobs
    return job


def compose_train(*words: str) -> TrainConfig:
    config, _ = compose("train", *words)
    assert isinstance(config, TrainConfig)
    return config


def three_classes() -> ImageFolder:
    names = tuple("abc")
    samples = tuple(
        Sample(f"{name}/{index}.png", (name,), "train") for name in names for index in range(20)
    )
    return ImageFolder(Path("x"), names, samples, ())


def settle_train(*words: str) -> TrainConfig:
    """Return what a training of three small classes would take in place of each `auto`."""
    config = compose_train(*words)
    hardware = Hardware("cpu", 1, 1, "auto", "32-true", {})
    config, _ = settle(config, three_classes())
    return settle_recipe(config, three_classes(), None, hardware)[0]


def nano_classifier() -> Classifier:
    backbone = create_backbone(NANO)
    features = describe_backbone(backbone).num_features
    head = create_head("linear", in_features=features, num_classes=NUM_CLASSES)
    return Classifier(backbone, head)


# --- all files --------------------------------------------------------------------------------


def test_every_file_is_a_verb_an_option_or_a_base_of_options():
    verbs = {path for path in FILES if path.parent == CONF}
    options = {CONF / group / f"{option}.yaml" for group, option in OPTIONS}
    bases = {path for path in FILES if path.name.startswith("_")}
    assert {path.stem for path in verbs} == set(VERBS)
    assert len(options) == len(OPTIONS) > 0
    assert len(verbs) + len(options) + len(bases) == len(FILES)
    assert set(FILES) == verbs | options | bases
    assert not list(CONF.rglob("*.yml"))


def test_the_options_are_those_that_a_user_is_offered():
    offered = {(group, name) for group, _ in OPTIONS for name in group_options(group)}
    assert offered == set(OPTIONS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_has_plain_values_alone(path):
    text = path.read_text(encoding="utf-8")
    assert "_target_" not in text
    assert "${" not in text
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_composes_and_validates(verb):
    config, as_yaml = compose(verb)
    assert type(config) is VERBS[verb]
    assert "_target_" not in as_yaml
    assert "???" not in as_yaml


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda word: word)
def test_an_option_composes_and_validates(group, option):
    config, as_yaml = compose("train", f"{group}={option}")
    assert "_target_" not in as_yaml
    assert "???" not in as_yaml
    chosen = yaml.safe_load(as_yaml)
    if group != "experiment":
        assert getattr(config, group).model_dump(mode="json").keys() == chosen[group].keys()


@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in OPTIONS if pair[0] in InspectConfig.model_fields]
)
def test_an_option_of_inspect_composes_and_validates(group, option):
    config, _ = compose("inspect", f"{group}={option}")
    assert getattr(config, group) == getattr(compose_train(f"{group}={option}"), group)


@pytest.mark.parametrize("group", sorted({group for group, _ in OPTIONS} - {"experiment"}))
def test_options_of_a_group_differ(group):
    seen = [
        getattr(compose_train(f"{group}={name}"), group).model_dump_json() for name in of(group)
    ]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("group", "name"), [(g, o) for g, o in OPTIONS if g in ("head", "scheduler", "logger", "loss")]
)
def test_the_word_of_an_option_is_its_name(group, name):
    assert getattr(compose_train(f"{group}={name}"), group).name == name


# --- each group builds ------------------------------------------------------------------------


def test_every_group_has_a_test_that_builds_it():
    text = Path(__file__).read_text(encoding="utf-8")
    built = set(re.findall(r'@pytest\.mark\.parametrize\("option", of\("(\w+)"\)\)', text))
    assert built >= {group for group, _ in OPTIONS} - {"experiment"}


@pytest.mark.parametrize("option", of("augmentation"))
def test_augmentation(option):
    config = settle_train(f"augmentation={option}")
    settings = config.augmentation
    augment = Augmentation(settings.transforms, 32, random_erasing=settings.random_erasing)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    shown = [augment(image, seed=seed) for seed in range(20)]
    assert {one.shape for one in shown} == {(32, 32, 3)}
    assert len({one.tobytes() for one in shown}) == (1 if option == "none" else 20)


@pytest.mark.parametrize("option", of("dataset"))
def test_dataset(option, stripes, tmp_path):
    made = {"digits": 1797, "formulas": 1000}
    root = tmp_path / option if option in made else stripes
    words = ["dataset.formula_images=1000", "dataset.formula_classes=9"]
    words = words if option == "formulas" else []
    config = compose_train(f"dataset={option}", f"dataset.root={root}", *words)
    folder = find_images(config.dataset, config.task)
    assert len(folder.samples) == made.get(option, 80)
    logged = training_metrics(NUM_CLASSES, task=config.task, names=config.dataset.metrics)
    assert config.dataset.monitor in {"loss", "auto", *logged}


@pytest.mark.parametrize("option", of("freeze"))
def test_freeze(option):
    config = settle_train(f"freeze={option}")
    classifier = nano_classifier()
    preprocess = build_preprocess(config, classifier)
    module = build_module(config, classifier, preprocess, three_classes())
    learns_backbone = any(p.requires_grad for p in classifier.backbone.parameters())
    assert learns_backbone == (option != "backbone")
    assert all(p.requires_grad for p in classifier.head.parameters())
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, NUM_CLASSES)


@pytest.mark.parametrize("option", of("head"))
def test_head(option):
    config = compose_train(f"head={option}")
    head = create_head(
        config.head.name, in_features=8, num_classes=NUM_CLASSES, **head_arguments(config)
    )
    assert head(torch.zeros(2, 8)).shape == (2, NUM_CLASSES)


@pytest.mark.parametrize("option", of("logger"))
def test_logger(option, tmp_path):
    config = settle_train(f"logger={option}", "trainer=cpu")
    if option in ("mlflow", "wandb") and find_spec(option) is None:
        with pytest.raises(ConfigError, match=rf'pip install "finetune\[{option}\]"'):
            build_any_trainer(config, tmp_path)
        return
    loggers = build_any_trainer(config, tmp_path).loggers
    names = [type(logger).__name__.lower().removesuffix("logger") for logger in loggers]
    assert names == ([] if option == "csv" else [option])


@pytest.mark.parametrize("option", of("loss"))
def test_loss(option):
    config = compose_train(f"loss={option}")
    settings = config.loss.model_dump(exclude={"name"})
    loss = create_loss(config.loss.name, task=config.task, **settings)
    labels = torch.tensor([0, 2])
    right = 20.0 * nn.functional.one_hot(labels, NUM_CLASSES)
    assert loss(right, labels).item() < loss(-right, labels).item()


@pytest.mark.parametrize("option", of("model"))
def test_model(option):
    model = compose_train(f"model={option}", "dataset=folder").model
    with torch.device("meta"):
        backbone = create_backbone(model.backbone, pretrained=False)
    info = describe_backbone(backbone)
    assert info.name == option
    assert info.num_features >= 64
    assert model.weights is None
    assert model.pretrained
    known = timm.get_pretrained_cfg(model.backbone)
    assert option == NANO or (known is not None and known.has_weights)


@pytest.mark.parametrize("option", of("optimizer"))
def test_optimizer(option):
    settings = settle_train(f"optimizer={option}", "dataset=folder").optimizer
    layers = {"stem": nn.Linear(4, 4), "top": nn.Linear(4, 4), "head": nn.Linear(4, NUM_CLASSES)}
    rates = stage_rates(
        2,
        lr=settings.lr,
        backbone_lr_factor=settings.backbone_lr_factor,
        layer_decay=settings.layer_decay,
    )
    optimizer = create_optimizer(
        settings.name,
        parameter_groups(
            {name: list(layer.parameters()) for name, layer in layers.items()},
            dict(zip(layers, [*rates, settings.lr], strict=True)),
            weight_decay=settings.weight_decay,
        ),
        lr=settings.lr,
        momentum=settings.momentum,
    )
    network = nn.Sequential(*layers.values())
    before = [parameter.clone() for parameter in network.parameters()]
    network(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("option", of("scheduler"))
def test_scheduler(option):
    config = settle_train(f"scheduler={option}", "dataset=folder")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = create_scheduler(
        optimizer,
        config.scheduler.name,
        total_steps=50,
        total_epochs=config.trainer.epochs,
        settings=config.scheduler.model_dump(exclude={"name"}),
    )
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(2.0, rel=1e-2)  # between two steps, for a short onecycle
    assert min(rates) > 0


@pytest.mark.parametrize("option", of("trainer"))
def test_trainer(option, tmp_path):
    config = settle_train(f"trainer={option}")
    if config.trainer.accelerator == "gpu" and not HAS_GPU:
        with pytest.raises(
            ConfigError, match=r"got gpu, but torch finds no CUDA device.*trainer=c"
        ):
            build_hardware(config)
        return
    trainer = build_any_trainer(config, tmp_path)
    assert trainer.max_epochs == config.trainer.epochs
    strategy = type(trainer.strategy).__name__
    expected = {"ddp": "DDPStrategy", "fsdp": "FSDPStrategy"}.get(option, "SingleDeviceStrategy")
    if option != "auto":  # which is DDP where there are several GPUs
        assert strategy == expected


@pytest.mark.parametrize("option", of("evidence"))
def test_evidence(option):
    evidence = compose_train(f"evidence={option}").evidence
    parts = (evidence.calibrate, evidence.coverage, evidence.max_error, evidence.resamples)
    assert all(bool(part) == evidence.report for part in parts)
    assert evidence.report == (option == "full")


def build_any_trainer(config: TrainConfig, folder: Path) -> Trainer:
    console = Console(file=io.StringIO())
    epochs = EpochTable(
        folder / "metrics.csv",
        metrics=config.dataset.metrics,
        monitor=monitor_key(config),
        mode=monitor_mode(config),
        console=console,
    )
    return build_trainer(config, build_hardware(config), RunDirectory(folder), epochs, console)
