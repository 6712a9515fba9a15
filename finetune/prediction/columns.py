r"""What a table of predictions has in each row, and how any text becomes valid UTF-8 in it.

Columns: ``path``, ``label``, ``probability``; ``abstained`` and ``prediction_set`` where
these are asked; ``label_1``, ``probability_1`` and so on for the best classes; one ``p_<class>``
per class; ``error``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns a table has beside ``path``, ``label``, ``probability`` and ``error``.

    Attributes:
        probabilities: one for each class.
        top_k: so many best classes, each with its probability; at most all.
        abstained: whether the answer was too improbable.
        prediction_set: the classes that may be true.
    """

    probabilities: bool = True
    top_k: int = 0
    abstained: bool = False
    prediction_set: bool = False


ALL_CLASSES = Columns()
"""A column for each class, and none that is optional."""


def best_classes(probabilities: Sequence[float], count: int) -> list[int]:
    """Give the indices of the most probable classes, best first; the first of equals comes first.

    Args:
        probabilities: ``C`` numbers.
        count: how many; at most ``C`` are given.
    """
    order = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
    return order[:count]


def top_columns(count: int) -> list[str]:
    """Name the columns of the best classes.

    >>> top_columns(2)
    ['label_1', 'probability_1', 'label_2', 'probability_2']
    """
    return [name for k in range(1, count + 1) for name in (f"label_{k}", f"probability_{k}")]


def class_columns(class_names: Sequence[str]) -> list[str]:
    """Name a column ``p_<class>`` per class, with ``_2``, ``_3`` … where a name is taken.

    >>> class_columns(["ant", "bee"])
    ['p_ant', 'p_bee']
    """
    return unique_names([f"p_{escape_undecodable(name)}" for name in class_names])


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names that are taken: ``a``, ``a_2``, ``a_3``."""
    taken: set[str] = set(names)
    seen: set[str] = set()
    unique = []
    for name in names:
        candidate, count = name, 1
        while candidate in seen or (count > 1 and candidate in taken):
            count += 1
            candidate = f"{name}_{count}"
        seen.add(candidate)
        unique.append(candidate)
    return unique


def disarm_formula(text: str) -> str:
    """Put ``'`` before text that a spreadsheet would run as a formula.

    Source: OWASP, CSV Injection.
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def restore_formula(text: str) -> str:
    """Take back what `disarm_formula` put before a text.

    >>> restore_formula(disarm_formula("=1.jpg"))
    '=1.jpg'
    """
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA_STARTS) else text


def escape_undecodable(text: str) -> str:
    r"""Write bytes that Python could not decode as ``\xNN``, so that the text is valid UTF-8.

    >>> escape_undecodable(os.fsdecode(b"caf\xe9.jpg"))
    'caf\\xe9.jpg'
    """
    # Nearly all text is ASCII, which has none, and is known to be at no cost.
    return text if text.isascii() else re.sub("[\ud800-\udfff]", _escape_surrogate, text)


def _escape_surrogate(match: re.Match[str]) -> str:
    code = ord(match[0])
    # PEP 383: byte NN of a file name is decoded as U+DCNN.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
