"""Which images a page has room for.

The page has a size that it never exceeds. Where the pictures are too many, the last cases of the
cells of the confusion matrix go first, then the last cases of the galleries; of those at the same
place in their rows, the later row loses its case first.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from finetune.evaluation.report.content import Case, Content, Picture

Key = TypeVar("Key", bound=Hashable)


def fit(content: Content, *, max_bytes: int) -> Content:
    """Leave out the last cases whose pictures, as base64, go beyond ``max_bytes``."""
    kept: Counter[Hashable] = Counter()
    left = max_bytes
    for key, case in _by_importance(content):
        left -= sum(encoded_bytes(picture) for picture in _pictures(case))
        if left < 0:
            break
        kept[key] += 1
    galleries = tuple(
        replace(gallery, cases=gallery.cases[: kept[index]])
        for index, gallery in enumerate(content.galleries)
    )
    cells = {cell: cases[: kept[cell]] for cell, cases in content.cells.items() if kept[cell]}
    return replace(content, galleries=galleries, cells=cells)


def without_pictures(content: Content) -> Content:
    """Empty every picture: what is left of the page is its text."""
    galleries = tuple(
        replace(gallery, cases=tuple(map(_emptied, gallery.cases))) for gallery in content.galleries
    )
    cells = {cell: tuple(map(_emptied, cases)) for cell, cases in content.cells.items()}
    return replace(content, galleries=galleries, cells=cells)


def encoded_bytes(picture: Picture) -> int:
    """Say how long a picture is in base64."""
    return -(-len(picture) // 3) * 4


def _by_importance(content: Content) -> Iterator[tuple[Hashable, Case]]:
    yield from _in_layers({index: gallery.cases for index, gallery in enumerate(content.galleries)})
    yield from _in_layers(content.cells)


def _in_layers(rows: Mapping[Key, tuple[Case, ...]]) -> Iterator[tuple[Key, Case]]:
    """Give the first case of every row, then the second ones, and so on."""
    for depth in range(max(map(len, rows.values()), default=0)):
        for key, cases in rows.items():
            if depth < len(cases):
                yield key, cases[depth]


def _pictures(case: Case) -> Iterator[Picture]:
    for picture in (case.picture, case.heat, *(near.picture for near in case.neighbours)):
        if picture is not None:
            yield picture


def _emptied(case: Case) -> Case:
    def empty(picture: Picture | None) -> Picture | None:
        return None if picture is None else b""

    near = tuple(replace(one, picture=empty(one.picture)) for one in case.neighbours)
    return replace(case, picture=empty(case.picture), heat=empty(case.heat), neighbours=near)
