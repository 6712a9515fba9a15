"""What ``--help`` prints: verbs, config groups with their options, and examples."""

import json
import re
from pathlib import Path

import yaml

from finetune.config import VERBS
from finetune.validation import holds_text, key_types

_PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
"""The config groups: inside an installed package, or beside the package in a checkout."""

_SUMMARIES = {
    "train": "fine-tune on a folder of labelled images",
    "evaluate": "measure a trained run on a split or on another folder",
    "compare": "several runs, or several backbones, on the same images: one table, one page",
    "predict": "label a file, a folder or a glob of images",
    "export": "write the model as one file that needs no finetune, and check its answers",
    "serve": "answer over HTTP on this machine, with a page to drop images on",
    "inspect": "look at images before training on them: counts, faults, copies, a picture",
    "data": "fetch the public images of a data set",
    "cache": "show what is kept between runs, or remove it",
}
_EXAMPLES = {
    "train": (
        "finetune train                                  the embedded digits, offline",
        "finetune train dataset.root=~/flowers           your own folder: <root>/<class>/*.jpg",
        "finetune train dataset.root=~/flowers model=resnet50 trainer.max_time_minutes=10",
        "finetune train dataset.root=~/flowers freeze=backbone    only the head, in seconds",
        "finetune train dataset=medical dataset.root=/data/xrays model.weights=r18.safetensors",
        "finetune train dataset.root=~/flowers dataset.folds=5 dataset.fold=all",
        "finetune train dataset.manifest=labels.csv task=multilabel",
        "finetune train -m model=resnet18,resnet34 seed=0,1",
        "finetune train resume=runs/latest               go on after an interruption",
    ),
    "evaluate": (
        "finetune evaluate run=runs/latest split=test",
        "finetune evaluate run=runs/latest root=/data/other_hospital",
    ),
    "compare": (
        "finetune compare runs/flowers/*",
        "finetune compare runs/flowers/small runs/flowers/large price_per_hour=1.20",
        "finetune compare backbones=[resnet18,resnet50] dataset.root=~/flowers",
    ),
    "predict": (
        "finetune predict run=runs/latest input=photos output=labels.csv",
        "finetune predict run=runs/latest input='photos/**/*.jpg' output=labels.parquet",
        "find /data -name '*.png' | finetune predict run=runs/latest input=- output=labels.csv",
        "finetune predict run=model.onnx input=photos output=labels.csv top_k=3 abstain=0.8",
    ),
    "export": (
        "finetune export run=runs/latest format=torchscript",
        "finetune export run=runs/latest format=onnx precision=int8",
        "finetune export run=runs/latest format=backbone layout=torchvision",
    ),
    "serve": ("finetune serve run=runs/latest",),
    "inspect": (
        "finetune inspect dataset.root=~/flowers augmentation=strong",
        r"finetune inspect dataset.root=/data/xrays dataset.group_pattern='person(\d+)_'",
        "finetune inspect dataset.manifest=labels.csv task=multilabel",
    ),
    "data": (
        "finetune data dataset=medical                   5,856 chest X-rays into data/medical",
        "finetune data dataset=medical source=~/Downloads/pneumoniamnist_224.npz",
    ),
    "cache": ("finetune cache", "finetune cache clear=images"),
}


def overview() -> str:
    """Return the text of ``finetune --help``."""
    verbs = [f"  {verb:<10}{_SUMMARIES[verb]}" for verb in VERBS]
    return "\n".join(
        [
            "Fine-tune pretrained image classifiers.",
            "",
            "Usage: finetune VERB [name=value …]",
            "",
            "Verbs:",
            *verbs,
            "",
            "Groups of `train` and their options (group=option, group.key=value):",
            *_group_lines("train", None),
            "",
            "Examples:",
            *(f"  {_EXAMPLES[verb][0]}" for verb in VERBS),
            "",
            "finetune VERB --help lists every name of a verb.",
            "",
        ]
    )


def verb_help(verb: str, config_dir: Path | None = None) -> str:
    """Return the text of ``finetune <verb> --help``."""
    groups_of_verb = _group_lines(verb, config_dir)
    kinds = key_types(VERBS[verb])
    plain = [key for key in kinds if "." not in key and not _is_group(verb, key)]
    # `head.name` and its like say what `head=…` chooses.
    grouped = [
        key for key in kinds if "." in key and (key[-5:] != ".name" or holds_text(kinds[key]))
    ]
    lines = [f"finetune {verb}: {_SUMMARIES[verb]}.", ""]
    folders = " [RUN …]" if verb == "compare" else ""
    lines += [f"Usage: finetune {verb}{folders} [name=value …] [-m]", ""]
    if groups_of_verb:
        lines += ["Groups (group=option):", *groups_of_verb, ""]
    lines += ["Names:", *_wrapped([*plain, *grouped, "config_dir"]), ""]
    lines += ["Defaults, where no group chooses another:", *_defaults(verb), ""]
    lines += ["Examples:", *(f"  {example}" for example in _EXAMPLES[verb]), ""]
    lines += ["-m runs every combination of comma-separated values."]
    lines += ["~logger takes the logger away."] if verb == "train" else []
    lines += ["config_dir=PATH adds a folder with groups and options of your own.", ""]
    return "\n".join(lines)


def groups(config_dir: Path | None = None) -> list[str]:
    """Name every config group of the package and of the user's own folder."""
    folders = [CONF, *([config_dir] if config_dir else [])]
    found = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    return sorted({*found, "experiment"})  # git keeps no empty folder


def group_options(group: str, config_dir: Path | None = None) -> list[str]:
    """Name the options of a group, without those that begin with an underscore."""
    folders = [CONF, *([config_dir] if config_dir else [])]
    files = [path for folder in folders for path in (folder / group).glob("[!_]*.yaml")]
    return sorted({path.stem for path in files}, key=_natural)


def _natural(word: str) -> list[tuple[str, int]]:
    """Order resnet18 before resnet101."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", word)]


def _is_group(verb: str, key: str) -> bool:
    return key in groups() and key in VERBS[verb].model_fields


def _group_lines(verb: str, config_dir: Path | None) -> list[str]:
    names = [name for name in VERBS[verb].model_fields if _is_group(verb, name)]
    names += ["experiment"] if verb == "train" else []
    return [f"  {name:<14}{' '.join(group_options(name, config_dir)) or '-'}" for name in names]


def _defaults(verb: str) -> list[str]:
    """Show the verb's own YAML file: its values are the defaults."""
    values = yaml.safe_load((CONF / f"{verb}.yaml").read_text(encoding="utf-8"))
    chosen = [entry for entry in values.pop("defaults", []) if isinstance(entry, dict)]
    # What `inspect.yaml` names beside `dataset` is for options that choose a model as well.
    options = {k: v for entry in chosen for k, v in entry.items() if k in VERBS[verb].model_fields}
    pairs = {**options, **values}.items()
    return _wrapped([f"{key}={_as_typed(value)}" for key, value in pairs])


def _as_typed(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _wrapped(words: list[str], width: int = 96) -> list[str]:
    lines, line = [], " "
    for word in words:
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = " "
        line += f" {word}"
    return [*lines, line]
