"""Pydantic's findings in the user's words: the key as typed, the value, what was expected."""

import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from finetune.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)

_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text",
    "too_short": "at least one",
    "path_type": "a file or folder",
    "list_type": "a list",
    "dict_type": "names with values",
    "model_type": "names with values",
    "model_attributes_type": "names with values",
    "string_pattern_mismatch": (
        "letters, digits, spaces, `.`, `_` and `-`, not first a space, dot or dash"
    ),
}
"""By pydantic's type of error, where its own words are not the user's."""


def validate(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Build ``model`` from plain values.

    Raises:
        ConfigError: one line per wrong key: what was got and what is expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error, model))) from None


def key_types(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Map every dotted key below ``model`` to its type; ``optimizer`` and ``optimizer.lr`` both.

    Where a group has several shapes (``head=linear``, ``head=mlp``), the keys of all are there.
    """
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        keys[key] = field.annotation
        for group in _models_in(field.annotation):
            for inner, kind in key_types(group, f"{key}.").items():
                keys.setdefault(inner, kind)
    return keys


def holds_path(kind: Any) -> bool:
    """Tell whether a key of this type holds a file or folder."""
    return kind is Path or any(holds_path(part) for part in get_args(kind))


def holds_list(kind: Any) -> bool:
    """Tell whether a key of this type holds a list."""
    return kind is list or get_origin(kind) is list


def holds_text(kind: Any) -> bool:
    """Tell whether a key of this type holds any text, such as a name."""
    is_union = get_origin(kind) in (Annotated, Union, types.UnionType)
    return kind is str or (is_union and any(holds_text(part) for part in get_args(kind)))


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif get_origin(kind) in (Annotated, Union, types.UnionType):
        for part in get_args(kind):
            yield from _models_in(part)


def _lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    keys = key_types(model)
    expected: dict[str, list[str]] = {}
    hints: dict[str, str] = {}
    for finding in error.errors():
        line, expectation = _describe(finding, keys, model)
        expected.setdefault(line, []).extend([expectation] if expectation else [])
        if finding["type"] == "literal_error" and isinstance(finding["input"], str):
            words = re.findall(r"'([^']+)'", finding["ctx"]["expected"])
            hints[line] = hints.get(line) or did_you_mean(finding["input"], words)
    return [
        f"{line}, expected {' or '.join(options)}.{hints.get(line, '')}" if options else line
        for line, options in expected.items()
    ]


def _describe(
    finding: Mapping[str, Any], keys: Mapping[str, Any], model: type[BaseModel]
) -> tuple[str, str]:
    """Return what was got and what was expected, which may have an alternative elsewhere."""
    key = _key(finding["loc"], keys)
    got, context, kind = finding["input"], finding.get("ctx", {}), finding["type"]
    if kind == "extra_forbidden":
        return _unknown(key, finding["loc"], keys, model), ""
    if kind in ("missing", "union_tag_not_found"):
        key += "" if kind == "missing" else ".name"
        return f"{key}: missing; give {key}=VALUE.", ""
    if kind == "value_error":
        reason = str(context["error"])
        end = "" if reason.endswith(("?", ".")) else "."
        # What does not fit together within a group begins with the name of a key.
        mark = "" if not key else "." if isinstance(got, Mapping) else ": "
        return f"{key}{mark}{reason}{end}", ""
    if kind == "union_tag_invalid":
        options = context["expected_tags"].replace("'", "")
        return f"{key}.name: got `{context['tag']}`", f"one of {options}"
    return f"{key}: got {_show(got)}", _expected(kind, context, finding["msg"])


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    match kind:
        case "greater_than":
            return f"a number > {context['gt']:g}"
        case "greater_than_equal":
            return f"a number >= {context['ge']:g}"
        case "less_than":
            return f"a number < {context['lt']:g}"
        case "less_than_equal":
            return f"a number <= {context['le']:g}"
        case "literal_error":
            options = context["expected"].replace("'", "").replace(" or ", ", ")
            return f"one of {options}" if "," in options else options
        case _:
            text = message.removeprefix("Input should be ")
            return _EXPECTED.get(kind, text[:1].lower() + text[1:])


def _key(location: tuple[str | int, ...], keys: Mapping[str, Any]) -> str:
    """Join a location to the key that a user types, without pydantic's names of union members."""
    known = ""
    for part in location:
        longer = f"{known}.{part}" if known else str(part)
        if longer in keys or not _is_member_name(str(part), known, keys):
            known = longer
    return known


def _is_member_name(part: str, parent: str, keys: Mapping[str, Any]) -> bool:
    kind = keys.get(parent)
    tags = {
        value
        for group in _models_in(kind)
        if "name" in group.model_fields
        for value in get_args(group.model_fields["name"].annotation)
    }
    return (
        part in tags
        or part.startswith(("constrained-", "literal[", "function-"))
        or (part in {"int", "float", "str", "bool"} and typing.get_origin(kind) is not dict)
    )


def _unknown(
    key: str, location: tuple[str | int, ...], keys: Mapping[str, Any], model: type[BaseModel]
) -> str:
    group = str(location[0])
    if key not in keys or len(location) < 3:
        return f"{key}: no such key.{did_you_mean(key, key_types(model))}"
    owners = [
        f"{group}={member.model_fields['name'].annotation.__args__[0]}"  # type: ignore[union-attr]
        for member in _models_in(keys[group])
        if str(location[-1]) in member.model_fields
    ]
    return f"{key}: {group}={location[1]} has no such key; {', '.join(owners)} has."


def _show(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else str(value)
