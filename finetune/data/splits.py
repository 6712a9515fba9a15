"""Seeded, stratified splitting that neither the machine nor the listing order changes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from finetune.data.discover import Sample, Split
from finetune.data.stratify import deal_folds, hold_out
from finetune.data.units import make_units
from finetune.errors import DataError


def assign_splits(
    samples: Iterable[Sample],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    together: Iterable[Sequence[str]] = (),
) -> tuple[Sample, ...]:
    """Give every sample a split.

    Samples are ordered by ``sha256(seed, path)``; the first of each class go to test, the next
    to val, the rest to train. So a sample's place depends on the seed and on the paths of its
    class alone.

    Of ``n`` images of a class, ``test_fraction * n`` rounded to the nearest (a half upwards) go
    to test; likewise for val, which gets at least one of two or more. Train keeps at least one,
    at the expense of test first, of val next.

    Samples of one group, and those of one set of ``together``, form a unit that is never parted.
    Units are ordered by the hash of their smallest group (or path), and each goes as a whole
    where it fills more than it overfills, so the fractions hold only as well as the units allow.
    The same holds for images of several labels, where the rarest label decides first; see
    ``stratify.hold_out``.

    Samples that come with a split keep it: with train and val, nothing moves; with train and
    test, val is taken out of train; with train alone, both are. A given test is never touched:
    what belongs with one of its images but was given to train is divided like any other unit, and
    does not follow it. The audit reports such a group or copy.

    Args:
        samples: in any order; either all or none with a split.
        val_fraction: of each class, in [0, 1); 0 makes no val.
        test_fraction: of each class, in [0, 1), with ``val_fraction`` below 1; 0 makes no test.
        seed: another seed gives another split.
        together: sets of paths, such as copies of one image.

    Returns:
        The samples sorted by path, each with a split.

    Raises:
        DataError: a fraction is out of range, some samples have a split and some have none, or no
            sample is left to train on.
    """
    _check_fractions(val_fraction, test_fraction)
    ordered = _sort(samples)
    given = _check_given(ordered)
    if "val" in given:
        return tuple(ordered)
    units = make_units(ordered, together, seed=seed)
    if "test" in given:
        test_fraction = 0.0
    places = hold_out(units, val_fraction=val_fraction, test_fraction=test_fraction)
    splits: list[Split] = ["test"] * len(ordered)
    for unit, split in zip(units, places, strict=True):
        for index in unit.members:
            splits[index] = split
    return _with_splits(ordered, splits)


def assign_folds(
    samples: Iterable[Sample],
    *,
    folds: int,
    fold: int,
    test_fraction: float,
    seed: int,
    together: Iterable[Sequence[str]] = (),
) -> tuple[Sample, ...]:
    """Give every sample its split in one round of cross-validation.

    Test is the same in every fold: the given one, or what is taken first as by
    ``assign_splits``. All others, also those that were given to val, are dealt into ``folds``
    parts, stratified, without parting a unit, and as equal as the units allow: see
    ``stratify.deal_folds``. Part ``fold`` is val, the rest is train.

    Each sample is in val in exactly one fold, but for those that a class cannot do without: the
    only unit of a class is in train in every fold.

    Args:
        samples: in any order; either all or none with a split.
        folds: number of parts, >= 2.
        fold: from 0 to ``folds - 1``.
        test_fraction: of each class, in [0, 1); not used where the samples have a test.
        seed: another seed gives other parts.
        together: as for ``assign_splits``.

    Returns:
        The samples sorted by path, each with a split.

    Raises:
        DataError: an argument is out of range, some samples have a split and some have none, or
            there are too few units to put one into each fold.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(f"got fold {fold} of {folds}, expected at least 2 folds, counted from 0.")
    _check_fractions(0, test_fraction)
    ordered = _sort(samples)
    given = _check_given(ordered)
    units = make_units(ordered, together, seed=seed)
    if "test" not in given and test_fraction > 0:
        # A val of one fold's size leaves each class enough to put into two folds.
        share = min(1 / folds, (1 - test_fraction) / 2)
        places = hold_out(units, val_fraction=share, test_fraction=test_fraction)
        units = [unit for unit, split in zip(units, places, strict=True) if split != "test"]
    splits: list[Split] = ["test"] * len(ordered)
    validated = deal_folds(units, folds)
    for unit, place in zip(units, validated, strict=True):
        for index in unit.members:
            splits[index] = "val" if place == fold else "train"
    if len(set(validated) - {None}) < folds:
        raise DataError(
            f"the images form only {len(units)} units that must not be parted (a group, copies of "
            f"an image, or one image), too few for {folds} folds; expected fewer folds."
        )
    return _with_splits(ordered, splits)


def group_by_pattern(samples: Sequence[Sample], pattern: str) -> tuple[Sample, ...]:
    r"""Group samples by what a regular expression finds in their paths.

    A group is named by the capturing groups, joined by ``/``, or by the whole match where the
    pattern has none: ``person(\d+)_`` gives ``12`` for ``train/person12_3.jpg``. A sample whose
    path does not match, or matches with nothing, stands alone, even if it had a group before.

    Raises:
        DataError: the pattern is no regular expression, or finds nothing in any path.
    """
    try:
        search = re.compile(pattern).search
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"group_pattern: {pattern!r} is no regular expression: {error}.") from None
    groups = [_name_group(search(sample.path)) for sample in samples]
    if samples and not any(groups):
        raise _no_match(samples, pattern)
    return tuple(
        replace(sample, group=group) for sample, group in zip(samples, groups, strict=True)
    )


def apply_split_file(
    samples: Sequence[Sample], rows: Iterable[Sample]
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Divide samples as a split file says.

    Args:
        samples: what the data holds; a split of its own gives way to that of the file.
        rows: from ``read_split``, each with a split. A row's group holds for a sample without.

    Returns:
        The samples that the file names, sorted by path; and the paths of the others.

    Raises:
        DataError: a row has no split, names an image that the data lacks, or has other labels.
    """
    known = {sample.path: sample for sample in samples}
    divided = []
    for row in rows:
        sample = known.pop(row.path, None)
        if sample is None:
            raise _not_there(row.path, samples)
        if row.split is None:
            raise DataError(
                f"the split file gives `{row.path}` no split; expected one of each row."
            )
        if row.labels != sample.labels:
            raise DataError(
                f"the split file calls `{row.path}` {_say(row.labels)}, the data "
                f"{_say(sample.labels)}; expected the same. Make the split file anew."
            )
        divided.append(replace(sample, split=row.split, group=sample.group or row.group))
    return tuple(_sort(divided)), tuple(sorted(known))


def _sort(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.path)


def _with_splits(samples: Sequence[Sample], splits: Sequence[Split]) -> tuple[Sample, ...]:
    # Not replace, which takes three times as long: there may be a million.
    return tuple(
        [
            Sample(sample.path, sample.labels, split, sample.group)
            for sample, split in zip(samples, splits, strict=True)
        ]
    )


def _name_group(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    found = match.groups("") if match.re.groups else (match[0],)
    return "/".join(found) if any(found) else None


def _no_match(samples: Sequence[Sample], pattern: str) -> DataError:
    got = f"dataset.group_pattern: `{pattern}` matches no path, such as `{samples[0].path}`."
    anyhow = re.compile(pattern, re.IGNORECASE)
    if any(_name_group(anyhow.search(sample.path)) for sample in samples):
        return DataError(f"{got} Did you mean `(?i){pattern}`, which ignores upper and lower case?")
    return DataError(
        f"{got} Quote it so that the shell leaves it alone: dataset.group_pattern='person(\\d+)_'."
    )


def _not_there(path: str, samples: Iterable[Sample]) -> DataError:
    name = "/" + path.rpartition("/")[2]
    near = next((sample.path for sample in samples if f"/{sample.path}".endswith(name)), None)
    hint = f" Did you mean `{near}`?" if near else ""
    return DataError(
        f"the split file names `{path}`, which the data lacks; expected paths below the data's "
        f"root.{hint}"
    )


def _say(labels: Sequence[str]) -> str:
    return " and ".join(f'"{name}"' for name in labels) or "nothing"


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for key, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise DataError(f"{key}: got {value}, expected a number in [0, 1).")
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"val_fraction + test_fraction: got {val_fraction} + {test_fraction}, expected less "
            "than 1; the rest is what is trained on."
        )


def _check_given(samples: Iterable[Sample]) -> set[Split | None]:
    """Return the splits that samples came with; {None} or no None at all."""
    given = {sample.split for sample in samples}
    if not given - {None}:
        return given
    if None in given:
        without = next(sample.path for sample in samples if sample.split is None)
        raise DataError(
            f"some samples have a split, and some, such as `{without}`, have none; expected all "
            "or none."
        )
    if "train" not in given:
        raise DataError(
            f"got samples for {', '.join(sorted(map(str, given)))} only, expected some to train on."
        )
    return given
