"""What a run says of itself, checked before anybody believes it: a run may be another's."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from finetune.errors import RunError

MAX_SETTINGS_BYTES = 1_000_000
MAX_SETTINGS_DEPTH = 30
MAX_SETTINGS_VALUES = 100_000
MAX_BYTES = 200_000_000
"""Above what any run writes: 100 folds of 1,000 classes take a tenth of it."""


def read_json(path: Path) -> Any:
    """Read plain values.

    Raises:
        RunError: there is no such file, it is no JSON, or larger than any of ours.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would wait, and some devices never end
            raise RunError(f"{path} cannot be read: it is no file.")
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} cannot be read: it is larger than {MAX_BYTES:,} bytes.")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def check_settings(path: Path) -> None:
    """Look at a YAML file before it is built up in memory, where aliases can make it explode.

    What is no YAML, or cannot be read, is for the reader to say.

    Raises:
        RunError: it is made to take all memory.
    """
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise RunError(
                f"{path} cannot be read: it is larger than {MAX_SETTINGS_BYTES:,} bytes."
            )
        _check_events(path, yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return


def _check_events(path: Path, events: Iterable[yaml.Event]) -> None:
    """Count what each collection holds with its aliases written out."""
    sizes: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        size = 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((event.anchor, 0))
            if len(open_ones) > MAX_SETTINGS_DEPTH:
                raise RunError(f"{path} cannot be read: it is nested too deeply.")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, inner = open_ones.pop()
            size += inner
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            # One that is not closed yet holds itself.
            size = sizes.get(event.anchor or "", MAX_SETTINGS_VALUES)
        name, total = open_ones.pop()
        open_ones.append((name, total + size))
        if total + size > MAX_SETTINGS_VALUES:
            raise RunError(f"{path} cannot be read: its aliases make it too large.")


def check_record(values: Any, path: Path) -> dict[str, Any]:
    """Check what was read from ``run.json``, and give it back.

    Raises:
        RunError: a value is of another kind than those that we write.
    """
    if not isinstance(values, dict) or not isinstance(values.get("data"), str):
        raise RunError(f"{path} does not name the data of the run.")
    return _checked(_Record, values, path)


def check_figures(values: Any, path: Path) -> dict[str, Any]:
    """Check what was read from ``metrics.json``, and give it back.

    Raises:
        RunError: a value is of another kind than those that we write.
    """
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no figures; it is damaged.")
    return _checked(_Figures, values, path)


def _checked(model: type[BaseModel], values: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))[:100]
        raise RunError(f"{path} is damaged, or not of a run: {key}: {first['msg']}.") from None
    return values


def _is_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def _is_path(value: str) -> str:
    if "\0" in value or len(value) > 4096:
        raise ValueError("expected the path of a folder")
    return value


def _are_different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name comes twice")
    return names


def _is_command(value: str) -> str:
    shlex.split(value)
    return value


# Not `str`, which refuses the names of files that are not UTF-8.
_Text = Annotated[Any, AfterValidator(_is_text)]


class _Plain(BaseModel):
    # Other keys are of a newer version, or for people.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Record(_Plain):
    data: Annotated[_Text, AfterValidator(_is_path)]
    seed: int = Field(0, ge=0, lt=2**32)
    class_names: Annotated[list[_Text], AfterValidator(_are_different)] = []
    columns: dict[str, _Text | None] = {}
    recipe: dict[str, Any] = {}
    decisions: dict[str, _Text] = {}
    versions: dict[str, str] = {}
    command: Annotated[_Text, AfterValidator(_is_command)] = ""
    started: str = ""
    resumed: list[dict[str, Any]] = []


class _Point(_Plain):
    threshold: float
    rule: str


class _Split(_Plain):
    operating_points: list[_Point] = []


class _Figures(_Plain):
    val: _Split | None = None
    test: _Split | None = None
    folds: list[dict[str, Any]] = []
    monitor: str = ""
    seconds: float | None = Field(None, ge=0, lt=1e12)
