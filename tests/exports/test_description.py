"""``model.json`` is checked key by key."""

import json
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import ModelError
from finetune.exports.description import (
    DECODE_POLICY,
    FORMAT_VERSION,
    PredictionSets,
    check_description,
    read_description,
)
from finetune.exports.interface import JSON_NAME
from finetune.models.sets import prediction_sets

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
    "sets": {"coverage": 0.95, "limit": 0.8, "penalty": 0.1, "free_ranks": 2, "images": 99},
    "abstain_below": 0.75,
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
        *[
            (put(f"sets.{key}", value), rf"sets\.{key}")
            for key, values in {
                "coverage": (0, 1, 95, 1e300, nan, None),
                "limit": (-0.1, nan, inf, "much", None),
                "penalty": (-0.1, nan, inf, None),
                "free_ranks": (-1, 0, 0.5, nan, 10**6, 10**400, None),
                "images": (-1, 0, nan, None),
                "_target_": ("os.system",),
            }.items()
            for value in values
        ],
        (put("sets", {}), r"sets\.coverage"),
        (put("sets", [0.95]), "sets"),
        (put("task", "multilabel"), "sets: .*one class per image"),
        *[(put("abstain_below", value), "abstain_below") for value in (7, 0, -1, nan, inf, "x")],
        (put("weights_sha256", "0"), "weights_sha256"),
        (put("weights_sha256", "0" * 64 + "\n"), "weights_sha256"),
        (put("versions", {"torch": None}), r"versions\.torch"),
    ],
)
def test_a_description_is_checked_key_by_key(tmp_path: Path, change: Change, message: str) -> None:
    path = write(tmp_path, changed(change))
    with pytest.raises(ModelError, match=rf"model\.json is no model description: {message}"):
        read_description(path)


NEWER = {"temperature", "decode_policy", "sets", "abstain_below"}
"""Keys that bundles of before do not have."""


def test_bundles_of_before_lack_what_is_newer(tmp_path: Path) -> None:
    def as_before(description: dict[str, Any]) -> None:
        for key in NEWER:
            del description[key]

    description = read_description(write(tmp_path, changed(as_before)))
    assert (description.temperature, description.decode_policy) == (1.0, 1)
    assert (description.sets, description.abstain_below) == (None, None)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6),
    st.floats(0, 2),
    st.floats(0, 1),
    st.integers(1, 7),
)
def test_a_set_is_read_with_the_most_probable_class_first(
    shares: list[float], limit: float, penalty: float, free_ranks: int
) -> None:
    sets = PredictionSets(
        coverage=0.9, limit=limit, penalty=penalty, free_ranks=free_ranks, images=1
    )
    row = torch.tensor([shares])
    names = [str(index) for index in range(len(shares))]
    (found,) = sets.read(row, names)
    rule = {"limit": limit, "penalty": penalty, "free_ranks": free_ranks}
    marked = prediction_sets(row, **rule)[0].tolist()
    assert sorted(found) == [name for name, may_be in zip(names, marked, strict=True) if may_be]
    # The first of equals comes first.
    assert list(found) == sorted(found, key=lambda name: (-shares[int(name)], int(name)))
    assert found[0] == names[int(row[0].argmax())]


def test_what_was_parsed_already_is_checked_alike() -> None:
    assert check_description(DESCRIPTION, "there").model_dump() == DESCRIPTION
    for values in ({**DESCRIPTION, "_target_": "os.system"}, None, [], "text"):
        with pytest.raises(ModelError, match=r"^there is no model description: "):
            check_description(values, "there")
    with pytest.raises(ModelError, match=r"^there has format version 2"):
        check_description({"format_version": 2}, "there")


@pytest.mark.parametrize("key", sorted({*DESCRIPTION} - NEWER))
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
