"""What follows ``compare``: run folders without a name, its own keys, those of trainings.

``finetune compare a b`` compares two runs. ``finetune compare backbones=[x,y] key=value`` trains
each backbone first: whatever is no key of ``compare`` is one of ``train``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune.config import VERBS, CompareConfig
from finetune.errors import ConfigError, did_you_mean
from finetune.validation import key_types

_OWN = tuple(key for key in CompareConfig.model_fields if key not in ("runs", "backbones"))
_FIXED = {
    "model.backbone": "is what backbones= names",
    "resume": "would go on with one training, where backbones= begins several",
}


@dataclass(frozen=True)
class CompareWords:
    """The words of one command line, sorted.

    Attributes:
        own: ``name=value`` of ``compare``, and what it will refuse; without the next two.
        runs: folders or patterns, as typed; None where none were.
        backbones: names, as typed; None to compare what is trained already.
        training: ``name=value`` for each training, without ``name``.
        name: of each run, before the backbone's.
    """

    own: tuple[str, ...]
    runs: tuple[str, ...] | None
    backbones: tuple[str, ...] | None
    training: tuple[str, ...] = ()
    name: str = ""

    def for_backbone(self, backbone: str) -> list[str]:
        """Give the words of one training but those that choose the backbone."""
        return [*self.training, f"name={self.name}_{backbone}"]


def sort_words(words: Sequence[str]) -> CompareWords:
    """Tell run folders, keys of ``compare`` and keys of ``train`` apart.

    A word without ``=`` is a run folder, and so is one with a ``/`` before it: a folder may be
    called ``runs/flowers/lr=0.1``.

    Raises:
        ConfigError: words of both uses, a key that neither verb has, or one that a comparison
            settles itself.
    """
    own: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    given: dict[str, str] = {}
    for word in words:
        key, has_value, value = word.lstrip("+").partition("=")
        if word.startswith("-") or (not has_value and re.fullmatch(r"~[\w.]+", word)):
            others.append(word)
        elif not has_value or ("/" in key and not key.startswith("hydra")):
            folders.append(word)
        elif key in ("runs", "backbones"):
            given[key] = value
        else:
            (own if key in _OWN else others).append(word)
    backbones = _items(given["backbones"]) if "backbones" in given else None
    if backbones is None:
        _refuse_training(others)
        runs = _items(given["runs"]) if "runs" in given else None
        folders = [*folders, *(runs or ())]
        found = tuple(folders) if folders or runs is not None else None
        return CompareWords((*own, *others), found, None)
    if folders:
        raise ConfigError(
            f"{folders[0]}: a run, but backbones= trains runs of its own. Compare them with it "
            f"afterwards: finetune compare {folders[0]} RUN ..."
        )
    if "runs" in given:  # where trainings go, as `train` means it
        others.append(f"runs={given['runs']}")
    return _for_training(own, others, backbones)


def _for_training(
    own: Sequence[str], others: Iterable[str], backbones: tuple[str, ...]
) -> CompareWords:
    repeated = [name for name in backbones if backbones.count(name) > 1]
    if repeated:
        raise ConfigError(f"backbones: got `{repeated[0]}` twice, expected different ones.")
    known = {*key_types(VERBS["train"]), "experiment", "config_dir"}
    name = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    training = []
    for word in others:
        key, _, value = word.lstrip("+~").partition("=")
        if word in ("-m", "--multirun"):
            raise ConfigError("-m: backbones= runs several trainings as it is; leave one out.")
        if key in _FIXED:
            raise ConfigError(f"{key}: {_FIXED[key]}; leave it out.")
        is_checked = not word.startswith(("-", "+", "hydra")) and "@" not in key
        if is_checked and key not in known:
            hint = did_you_mean(key, [*known, *_OWN, "backbones"])
            raise ConfigError(f"{key}: no such key.{hint}")
        if key == "name":
            name = value if value not in ("", "null") else name
        else:
            training.append(word)
    shared = [word for word in training if word.startswith("config_dir=")]
    return CompareWords((*own, *shared), None, backbones, tuple(training), name)


def _refuse_training(words: Iterable[str]) -> None:
    known = {*key_types(VERBS["train"]), "experiment"}
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in known:
            raise ConfigError(
                f"{key}: is for trainings, and nothing is trained here; compare trains where it is "
                "told which: backbones=[resnet18,resnet50]."
            )


def _items(text: str) -> tuple[str, ...] | None:
    """Take ``[a,'b c']`` or ``a,b`` apart; a quote keeps its comma."""
    if text == "null":
        return None
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    parts = (part.strip() for part in re.findall(r"""(?:'[^']*'|"[^"]*"|[^,])+""", inner))
    return tuple(_unquoted(part) for part in parts if part)


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]
    return text[1:-1] if is_quoted else text
