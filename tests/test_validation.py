from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from finetune.config import VERBS, ExpandedPath
from finetune.errors import ConfigError
from finetune.validation import holds_path, holds_text, key_types, validate


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Round(Strict):
    name: Literal["round"]
    radius: float = Field(gt=0)


class Square(Strict):
    name: Literal["square"]
    side: float = Field(ge=0, lt=10)


Shape = Annotated[Round | Square, Field(discriminator="name")]


class Paint(Strict):
    colour: Literal["red", "green"]
    layers: Annotated[int, Field(ge=1)] | Literal["auto"]
    glossy: bool
    tin: Path | None
    label: str = Field(pattern="^[a-z]+$")
    extras: list[dict[str, Any]]


class Drawing(Strict):
    shape: Shape
    frame: Shape | None = None
    paint: Paint
    width_px: int = Field(le=100)


GOOD: dict[str, Any] = {
    "shape": {"name": "round", "radius": 1},
    "paint": {
        "colour": "red",
        "layers": "auto",
        "glossy": False,
        "tin": None,
        "label": "matt",
        "extras": [{"anything": 1}],
    },
    "width_px": 10,
}


def message(**changes: Any) -> str:
    """Return the error of ``GOOD`` with changes; ``__`` stands for a dot."""
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in GOOD.items()}
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        (values[group] if group else values)[name] = value
    with pytest.raises(ConfigError) as caught:
        validate(Drawing, values)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_good_values_become_the_model():
    drawing = validate(Drawing, GOOD)
    assert drawing.shape == Round(name="round", radius=1)
    assert drawing.frame is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"width_px": 101}, "width_px: got 101, expected a number <= 100."),
        ({"width_px": "wide"}, "width_px: got `wide`, expected a whole number."),
        ({"width_px": 1.5}, "width_px: got 1.5, expected a whole number."),
        ({"width_px": None}, "width_px: got null, expected a whole number."),
        ({"shape__radius": 0}, "shape.radius: got 0, expected a number > 0."),
        ({"shape__radius": "x"}, "shape.radius: got `x`, expected a number."),
        (
            {"paint__colour": "rde"},
            "paint.colour: got `rde`, expected one of red, green. Did you mean `red`?",
        ),
        ({"paint__glossy": "shiny"}, "paint.glossy: got `shiny`, expected true or false."),
        ({"paint__layers": 0}, "paint.layers: got 0, expected a number >= 1 or auto."),
        ({"paint__layers": "all"}, "paint.layers: got `all`, expected a whole number or auto."),
        ({"paint__tin": 5}, "paint.tin: got 5, expected a file or folder."),
        ({"paint__label": 5}, "paint.label: got 5, expected text."),
        ({"paint__extras": "x"}, "paint.extras: got `x`, expected a list."),
        ({"paint__extras": ["x"]}, "paint.extras.0: got `x`, expected names with values."),
        ({"paint": 5}, "paint: got 5, expected names with values."),
        ({"shape": {"name": "square", "side": 10}}, "shape.side: got 10, expected a number < 10."),
        ({"frame": {"name": "square", "side": -1}}, "frame.side: got -1, expected a number >= 0."),
        ({"shape": {"name": "oval"}}, "shape.name: got `oval`, expected one of round, square."),
        ({"shape": {"radius": 3}}, "shape.name: missing; give shape.name=VALUE."),
        ({"shape": {"name": "round"}}, "shape.radius: missing; give shape.radius=VALUE."),
        ({"heigth": 3}, "heigth: no such key."),
        ({"widht_px": 3}, "widht_px: no such key. Did you mean `width_px`?"),
        ({"paint__color": 3}, "paint.color: no such key. Did you mean `paint.colour`?"),
        ({"shape__side": 3}, "shape.side: shape=round has no such key; shape=square has."),
        ({"shape__sidee": 3}, "shape.sidee: no such key. Did you mean `shape.side`?"),
    ],
)
def test_messages_name_the_key_the_value_and_what_is_expected(changes, expected):
    assert message(**changes) == expected


def test_every_mistake_has_a_line():
    lines = message(width_px=101, paint__glossy="shiny").splitlines()
    assert [line.split(":")[0] for line in lines] == ["paint.glossy", "width_px"]


def test_keys_of_all_shapes_are_known():
    keys = key_types(Drawing)
    assert {"shape", "shape.name", "shape.radius", "shape.side", "frame.side"} <= set(keys)
    assert {"paint.tin", "paint.extras", "width_px"} <= set(keys)
    assert not any(key.startswith("paint.extras.") for key in keys)


@pytest.mark.parametrize(
    ("kind", "is_path", "is_text"),
    [
        (Path, True, False),
        (Path | None, True, False),
        (ExpandedPath, True, False),
        (ExpandedPath | None, True, False),
        (str, False, True),
        (str | None, False, True),
        (Annotated[str, Field(min_length=1)], False, True),
        (int, False, False),
        (Literal["a", "b"], False, False),
        (Annotated[int, Field(ge=1)] | Literal["auto"], False, False),
        (list[dict[str, Any]], False, False),
        (Shape, False, False),
        (None, False, False),
    ],
)
def test_what_a_key_holds(kind, is_path, is_text):
    assert holds_path(kind) is is_path
    assert holds_text(kind) is is_text


@pytest.mark.parametrize("verb", VERBS)
def test_no_key_and_no_garbage_makes_pydantic_speak(verb):
    """Whatever is wrong with whichever key, the message is in the user's words."""
    keys = key_types(VERBS[verb])
    garbage = [None, True, "???", "", -1e9, float("nan"), [], [1], {}, {"x": 1}, {"name": "x"}]
    count = 0
    for key in keys:
        for value in garbage:
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            with pytest.raises(ConfigError) as caught:  # the other keys are missing
                validate(VERBS[verb], nested)
            for line in str(caught.value).splitlines():
                assert line.split(":")[0].split(".")[0] in keys, line
                for word in ("Input", "<class", "discriminator", "pydantic", "Config", " tag "):
                    assert word not in line, (key, value, line)
            count += 1
    assert count == len(keys) * len(garbage) > 30
