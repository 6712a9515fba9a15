"""Units: samples that no split may part, in an order that the seed decides."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune.data.discover import Sample

_Key = tuple[bool, str]
"""Whether it is a path's, then the name: of a group or of a path."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Samples that go to one split together.

    Attributes:
        members: their places in the list that the units were made of.
        sizes: number of images of each label, sorted by label. Images without a label count as
            if they had the label ``""``, which no class can have.
    """

    members: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]


def make_units(
    samples: Sequence[Sample], together: Iterable[Sequence[str]], *, seed: int
) -> list[Unit]:
    """Join what has a group in common, or stands in one of the sets of ``together``.

    A unit is named by the smallest of its groups, or of its paths where it has none, and units
    are ordered by ``sha256(seed, name)``: neither depends on the order of listing.

    Samples whose split is ``test`` are in no unit; but two others that both belong with one of
    them belong together.

    Args:
        samples: sorted by path.
        together: sets of paths, such as copies of one image; unknown paths do not matter.
        seed: another seed gives another order.
    """
    members: dict[_Key, list[int]] = {}
    for index, key in enumerate(_join(samples, together)):
        if samples[index].split != "test":
            members.setdefault(key, []).append(index)
    order = sorted(members, key=lambda key: (_digest(seed, key[1]), key))
    known: dict[tuple[tuple[str, ...], ...], tuple[tuple[str, int], ...]] = {}
    units = []
    for key in order:
        labels = tuple([samples[index].labels for index in members[key]])
        if labels not in known:
            counts = Counter(name for names in labels for name in names or ("",))
            known[labels] = tuple(sorted(counts.items()))
        units.append(Unit(tuple(members[key]), known[labels]))
    return units


def _join(samples: Sequence[Sample], together: Iterable[Sequence[str]]) -> list[_Key]:
    """Return the key of each sample's unit: the smallest of those that union-find joins."""
    keys = [
        (True, sample.path) if sample.group is None else (False, sample.group) for sample in samples
    ]
    sets = [set(paths) for paths in together]
    copies = set().union(*sets)
    key_of = {
        sample.path: key for sample, key in zip(samples, keys, strict=True) if sample.path in copies
    }
    parents: dict[_Key, _Key] = {}

    def find(key: _Key) -> _Key:
        root = key
        while root in parents:
            root = parents[root]
        while key != root:
            parents[key], key = root, parents[key]
        return root

    for paths in sets:
        roots = {find(key_of[path]) for path in paths if path in key_of}
        if roots:
            first = min(roots)
            parents.update((root, first) for root in roots - {first})
    return [find(key) for key in keys] if parents else keys


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()
