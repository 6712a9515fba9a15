"""Which units are held out, so that every label has its share of each split or fold."""

from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.data.discover import Split
from finetune.data.units import Unit

_HELD_OUT: tuple[Split, ...] = ("test", "val")


def hold_out(units: Sequence[Unit], *, val_fraction: float, test_fraction: float) -> list[Split]:
    """Choose units for test and val; the rest is for train.

    The rarest label decides first, over the units that hold it, in their order: each goes to
    test, or else to val, where it brings each of its labels nearer to its target. As long as the
    label needs more, units follow that bring their labels nearer on the whole. Train keeps a unit
    of each label. A label that in the end has nothing in val (in test) gets the smallest unit
    whose other labels all need more.

    Source: the order of the labels is that of Sechidis et al. 2011, "On the stratification of
    multi-label data".
    """
    images, holders = _count_images(units), _find_holders(units)
    rarest_first = sorted(images, key=lambda name: (images[name], name))
    held_out = _HeldOut(units, val_fraction, test_fraction)
    for name in rarest_first:
        held_out.fill(name, holders[name], neatly=True)
        held_out.fill(name, holders[name], neatly=False)
    for split in ("val", "test"):
        for name in rarest_first:
            if name in held_out.wanted[split]:
                held_out.force(name, holders[name], split)
    return held_out.places


class _HeldOut:
    """Where each unit goes, and what that leaves to be done: the state of ``hold_out``."""

    def __init__(self, units: Sequence[Unit], val_fraction: float, test_fraction: float) -> None:
        self.units = units
        self.places: list[Split] = ["train"] * len(units)
        # Units of a label that train still has, or may still get.
        self.left = _count_units(units)
        self.needs: dict[Split, dict[str, float]] = {"test": {}, "val": {}}
        for name, count in _count_images(units).items():
            self.needs["test"][name], self.needs["val"][name] = find_targets(
                count, self.left[name], val_fraction, test_fraction
            )
        self.wanted = {
            split: {name for name, need in needs.items() if need >= 0.5}
            for split, needs in self.needs.items()
        }

    def fill(self, name: str, holders: Sequence[int], *, neatly: bool) -> None:
        """Bring a label to its targets, as far as its units allow."""
        for index in holders:
            open_splits = [split for split in _HELD_OUT if self.needs[split][name] >= 0.5]
            if not open_splits:
                return
            if self.places[index] == "train" and self._is_spare(index):
                fitting = (split for split in open_splits if self._gains(index, split, neatly))
                if split := next(fitting, None):
                    self._move(index, split)

    def force(self, name: str, holders: Sequence[int], split: Split) -> None:
        """Give a label one unit in a split, where one can be spared."""
        needs = self.needs[split]
        candidates = [
            (len(self.units[index].members), place, index)
            for place, index in enumerate(holders)
            if self.places[index] == "train"
            and self._is_spare(index)
            and all(other == name or needs[other] > 0 for other, _ in self.units[index].sizes)
        ]
        if candidates:
            self._move(min(candidates)[-1], split)

    def _gains(self, index: int, split: Split, neatly: bool) -> bool:
        """Say whether the counts come nearer to their targets; a half of one image is enough."""
        needs = self.needs[split]
        gains = [
            abs(needs[name]) - abs(needs[name] - size) for name, size in self.units[index].sizes
        ]
        return min(gains) >= 0 if neatly else sum(gains) > 0

    def _is_spare(self, index: int) -> bool:
        return all(self.left[name] > 1 for name, _ in self.units[index].sizes)

    def _move(self, index: int, split: Split) -> None:
        self.places[index] = split
        for name, size in self.units[index].sizes:
            self.needs[split][name] -= size
            self.left[name] -= 1
            self.wanted[split].discard(name)


def find_targets(
    images: int, units: int, val_fraction: float, test_fraction: float
) -> tuple[float, float]:
    """Return how many of a label's images shall go to test and to val, before rounding.

    Val gets at least one of two or more units; train keeps at least one image, at the expense of
    test first, of val next.
    """
    val = images * val_fraction
    if val_fraction > 0:
        val = max(val, 1.0)
    val = min(val, images - 1) if units > 1 else 0.0
    rest = images - 1 - int(val + 0.5)
    test = min(images * test_fraction, rest) if units > 1 + (val > 0) else 0.0
    return test, val


def deal_folds(units: Sequence[Unit], folds: int) -> list[int | None]:
    """Choose the fold that each unit is validated in.

    Units with the rarest labels come first, larger before smaller ones. Each goes where the
    images of its labels are fewest so far, as shares of all images of that label; of equal
    folds, to the one with the fewest images.

    A label keeps a unit to train on in each fold: a unit that no fold can do without (the only
    one of its label, in rare cases another) is validated in none: None.

    Source: greedy as scikit-learn's ``StratifiedGroupKFold``; the order of the labels is that of
    Sechidis et al. 2011, "On the stratification of multi-label data".
    """
    images, waiting = _count_images(units), _count_units(units)
    homes: dict[str, set[int | None]] = {name: set() for name in images}
    counts = [dict.fromkeys(images, 0) for _ in range(folds)]
    totals = [0] * folds
    places: list[int | None] = [None] * len(units)

    def rank(index: int) -> tuple[int, str, int]:
        rarest = min((images[name], name) for name, _ in units[index].sizes)
        return *rarest, -len(units[index].members)

    def cost(fold: int, sizes: Sequence[tuple[str, int]]) -> tuple[float, int]:
        held = counts[fold]
        return sum(size * held[name] / images[name] for name, size in sizes), totals[fold]

    for index in sorted(range(len(units)), key=rank):
        sizes = units[index].sizes
        open_folds = set(range(folds))
        for name, _ in sizes:
            waiting[name] -= 1
            if not waiting[name] and not homes[name]:
                open_folds.clear()
            elif not waiting[name] and len(homes[name]) == 1:
                open_folds -= homes[name]
        fold = min(sorted(open_folds), key=lambda fold: cost(fold, sizes), default=None)
        places[index] = fold
        for name, size in sizes:
            homes[name].add(fold)
            if fold is not None:
                counts[fold][name] += size
        if fold is not None:
            totals[fold] += len(units[index].members)
    return places


def _count_images(units: Sequence[Unit]) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    for unit in units:
        for name, size in unit.sizes:
            counts[name] += size
    return counts


def _count_units(units: Sequence[Unit]) -> Counter[str]:
    return Counter(name for unit in units for name, _ in unit.sizes)


def _find_holders(units: Sequence[Unit]) -> dict[str, list[int]]:
    """Map each label to the units that hold it, in their order."""
    holders: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        for name, _ in unit.sizes:
            holders.setdefault(name, []).append(index)
    return holders
