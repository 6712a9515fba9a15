"""What may be shown in a terminal: file and class names come from anywhere, and could steer it."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

# Importing rich takes longer than `--help` may.
if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderHook
    from rich.segment import Segment

_STEERING = re.compile(
    # Control characters but tab and line feed; what turns the direction of a text around.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    r"""Write what would steer a terminal as Python writes it: ESC becomes ``\x1b``."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def open_console(*, stderr: bool = False) -> "Console":
    """Open a console on standard output, or standard error, that is guarded."""
    from rich.console import Console

    console = Console(stderr=stderr)
    guard(console)
    return console


def guard(console: "Console") -> None:
    """Have a console show names as `printable` does, wherever they stand; its own colours stay."""
    if not any(isinstance(hook, _Guard) for hook in console._render_hooks):
        console.push_render_hook(cast("RenderHook", _Guard()))


class _Guard:
    """What rich asks about everything that is printed."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Printable(renderable) for renderable in renderables]


class _Printable:
    def __init__(self, renderable: "RenderableType") -> None:
        self.renderable = renderable

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[Segment]":
        for segment in console.render(self.renderable, options):
            is_own = segment.control is not None
            yield segment if is_own else type(segment)(printable(segment.text), segment.style)
