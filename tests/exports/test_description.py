"""``model.json`` is checked key by key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import ModelError
from finetune.exports.description import (
    DECODE_POLICY,
    FORMAT_VERSION,
    check_description,
    read_description,
)
from finetune.exports.interface import JSON_NAME

DESCRIPTION: dict[str, Any] = {
    "format_version": FORMAT_VERSION,
    "task": "multiclass",
    "class_names": ["ant", "bee"],
    "backbone": {"name": "nano", "image_size_px": 32},
    "head": {"name": "mlp", "arguments": {"dropout": 0.1, "hidden_features": 12}},
    "preprocessing": {"image_size_px": 32, "mean": [0.5, 0.5, 0.5]},
    "max_megapixels": 200,
    "decode_policy": DECODE_POLICY,
    "temperature": 1.5,
    "weights_sha256": "0123456789abcdef" * 4,
    "metrics": {"val": {"accuracy": 0.5, "auroc": None}},
    "versions": {"torch": "2.10"},
    "command": "finetune train",
}

Change = Callable[[dict[str, Any]], Any]


def write(folder: Path, text: str) -> Path:
    path = folder / JSON_NAME
    path.write_bytes(text.encode(errors="surrogateescape"))
    return path


def put(path: str, value: Any) -> Change:
    """Return a change of the description: the value at a dotted path."""

    def change(description: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            description = description[parent]
        description[last] = value

    return change


def changed(change: Change) -> str:
    description = json.loads(json.dumps(DESCRIPTION))
    change(description)
    return json.dumps(description)


def test_a_description_comes_back_as_it_was_written(tmp_path: Path) -> None:
    description = read_description(write(tmp_path, json.dumps(DESCRIPTION)))
    assert description.model_dump() == DESCRIPTION
    assert type(description.head.arguments["hidden_features"]) is int
    with pytest.raises(ValueError, match="frozen"):
        description.task = "multilabel"


def test_a_newer_format_asks_for_a_newer_finetune(tmp_path: Path) -> None:
    # It may hold keys that nobody knows yet; the version comes first.
    text = changed(lambda d: d.update(format_version=FORMAT_VERSION + 1, mood="good"))
    with pytest.raises(ModelError, match=r"format version 2; .* up to 1\. Install a newer"):
        read_description(write(tmp_path, text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("_target_", "os.system"), "_target_"),
        (put("head._target_", "os.system"), r"head\._target_"),
        (put("extra", 1), "extra"),
        (put("format_version", "1"), "format_version"),
        (put("format_version", 0), "format_version"),
        (put("format_version", None), "format_version"),
        (put("task", "detection"), "task"),
        (put("task", "single_label"), "task"),
        (put("class_names", ["ant"]), "class_names"),
        (put("class_names", None), "class_names"),
        (put("class_names", ["ant", 5]), r"class_names\.1"),
        (put("head.name", "evil"), r"head\.name"),
        (put("head.arguments", {"dropout": [0]}), r"head\.arguments\.dropout"),
        (put("backbone.image_size_px", 0), r"backbone\.image_size_px"),
        (put("backbone.image_size_px", 2049), r"backbone\.image_size_px"),
        (put("class_names", ["name"] * 100_001), "class_names"),
        (put("preprocessing.image_size_px", 10**6), "preprocessing: .*image_size_px"),
        (put("preprocessing.image_size_px", float("nan")), "preprocessing: .*image_size_px"),
        (put("preprocessing.crop_fraction", 1e-9), "preprocessing: .*crop_fraction"),
        (put("backbone", "nano"), "backbone"),
        (put("preprocessing", []), "preprocessing"),
        (put("max_megapixels", -1), "max_megapixels"),
        (put("max_megapixels", float("nan")), "max_megapixels"),
        (put("decode_policy", 2), "decode_policy"),
        (put("temperature", 0), "temperature"),
        (put("temperature", -1.0), "temperature"),
        (put("temperature", float("nan")), "temperature"),
        (put("temperature", float("inf")), "temperature"),
        (put("temperature", None), "temperature"),
        (put("weights_sha256", "0"), "weights_sha256"),
        (put("weights_sha256", "0" * 64 + "\n"), "weights_sha256"),
        (put("versions", {"torch": None}), r"versions\.torch"),
    ],
)
def test_a_description_is_checked_key_by_key(tmp_path: Path, change: Change, message: str) -> None:
    path = write(tmp_path, changed(change))
    with pytest.raises(ModelError, match=rf"model\.json is no model description: {message}"):
        read_description(path)


def test_bundles_of_before_have_neither_temperature_nor_decode_policy(tmp_path: Path) -> None:
    def as_before(description: dict[str, Any]) -> None:
        del description["temperature"], description["decode_policy"]

    description = read_description(write(tmp_path, changed(as_before)))
    assert (description.temperature, description.decode_policy) == (1.0, 1)


def test_what_was_parsed_already_is_checked_alike() -> None:
    assert check_description(DESCRIPTION, "there").model_dump() == DESCRIPTION
    for values in ({**DESCRIPTION, "_target_": "os.system"}, None, [], "text"):
        with pytest.raises(ModelError, match=r"^there is no model description: "):
            check_description(values, "there")
    with pytest.raises(ModelError, match=r"^there has format version 2"):
        check_description({"format_version": 2}, "there")


@pytest.mark.parametrize("key", sorted({*DESCRIPTION} - {"temperature", "decode_policy"}))
def test_every_key_is_needed(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, changed(lambda description: description.pop(key)))
    with pytest.raises(ModelError, match=f"no model description: {key}: Field required"):
        read_description(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"'])
def test_json_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"model\.json is no model description: the whole: "):
        read_description(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[" * 100_000, "1" * 5000, '{"format_version": 1', "\udcff"],
    ids=["empty", "text", "deep", "long number", "cut", "not utf-8"],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"model\.json cannot be read: "):
        read_description(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.json cannot be read: .*No such file"):
        read_description(tmp_path / JSON_NAME)
