"""How a report writes its numbers."""

import math
from typing import TypeGuard

from finetune.evaluation.report.content import Value


def is_known(number: float | None) -> TypeGuard[float]:
    """Tell whether there is a number to write; ``nan`` is none."""
    return number is not None and math.isfinite(number)


def figure(number: float, is_share: bool = True) -> str:
    """Write a number alone.

    Args:
        number: finite.
        is_share: as a percentage with one decimal; else with three digits that count.

    >>> figure(0.94771), figure(0.158184, is_share=False), figure(2041.0, is_share=False)
    ('94.8 %', '0.158', '2041')
    """
    if is_share:
        return f"{percentage(number)} %"
    digits = 2 - math.floor(math.log10(abs(number))) if number else 2
    return f"{number:.{min(max(digits, 0), 6)}f}"


def interval(value: Value, is_share: bool = True) -> str:
    """Write the ends of an interval, without a unit; nothing where there is none.

    >>> interval(Value(0.948, 0.902, 0.976))
    '90.2 to 97.6'
    """
    if value.low is None or value.high is None or not is_known(value.low + value.high):
        return ""
    write = percentage if is_share else lambda number: figure(number, is_share=False)
    return f"{write(value.low)} to {write(value.high)}"


def percentage(share: float) -> str:
    """Write a share of 1 as a percentage with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def split_reason(text: str) -> tuple[str, str]:
    """Take a decision apart: its value, and the reason that stands in brackets after it.

    >>> split_reason("224 (what the backbone (ResNet) was made for)")
    ('224', 'what the backbone (ResNet) was made for')
    """
    value, bracket, reason = text.partition(" (")
    return (value, reason[:-1]) if bracket and reason.endswith(")") else (text, "")
