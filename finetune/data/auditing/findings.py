"""From what is known of each file to what is wrong with the data: pure functions."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from finetune.config import FINDINGS
from finetune.data.auditing.examine import Report
from finetune.data.discover import ImageFolder, Sample

Severity = Literal["error", "warning", "info"]
Sets = Sequence[tuple[str, ...]]

IMBALANCE_RATIO = 2
"""From here on, the largest class is called too large for the smallest."""
FEW_IMAGES = 10

_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
RULES: Mapping[str, tuple[Severity, str]] = {
    "unreadable": ("warning", "They are left out; replace or remove them."),
    "too_large": ("warning", "They are left out; to use them, raise dataset.max_megapixels."),
    "too_small": ("warning", "Enlarged, they show nothing more; find larger ones or remove them."),
    "constant": ("warning", "There is nothing to learn from them; remove them."),
    "wrong_suffix": ("info", "The content counts here; other programs may refuse them."),
    "conflicting_labels": ("error", "Decide on one label, and remove the other copies."),
    "near_conflicting_labels": ("warning", "Look at them, and decide on one label."),
    "duplicates_across_splits": (
        "error",
        "Keep each in one split: what is tested on must not be trained on.",
    ),
    "near_duplicates_across_splits": (
        "warning",
        "Look at them, and keep each in one split: an answer learned by heart proves nothing.",
    ),
    "group_across_splits": (
        "error",
        "Move each group into one split, or take the splits away and let the tool divide.",
    ),
    "duplicates": ("warning", "Keep one of each; the others only make it count more."),
    "near_duplicates": ("warning", "Keep one of each; a division never parts them."),
    "imbalance": ("warning", "dataset.balance decides what is done; read the metrics per class."),
    "few_images": ("warning", "Add some: so few teach little, and measure less."),
    "missing_class": ("warning", "Add some there: what is absent is neither learned nor measured."),
    "no_groups": (
        "warning",
        "Images of one person in two splits look like success; say which belong together: "
        "dataset.group_pattern, or a manifest with a group column.",
    ),
    "mixed_modes": ("info", "All become 8-bit RGB; look whether a type gives a class away."),
    "skipped": ("info", "Nothing to do, unless they were meant to be trained on."),
}
_SUFFIXES: Mapping[str, frozenset[str]] = {
    "AVIF": frozenset({".avif"}),
    "BMP": frozenset({".bmp"}),
    "DICOM": frozenset({".dcm", ".dicom"}),
    "GIF": frozenset({".gif"}),
    "JPEG": frozenset({".jpg", ".jpeg"}),
    "PNG": frozenset({".png"}),
    "TIFF": frozenset({".tif", ".tiff"}),
    "WEBP": frozenset({".webp"}),
}
_CLASSES_NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble and all the files that have it.

    Attributes:
        name: one of `finetune.config.FINDINGS`.
        severity: ``error`` spoils the result, ``warning`` may, ``info`` is good to know.
        paths: POSIX, relative to the folder's root.
        message: what was found, the number first.
        remedy: the nearest fix.
        accepted: the user knows, and goes on.
    """

    name: str
    severity: Severity
    paths: tuple[str, ...]
    message: str
    remedy: str
    accepted: bool = False


def list_findings(
    folder: ImageFolder,
    reports: Mapping[str, Report],
    duplicates: Sets,
    near_duplicates: Sets,
    *,
    min_side_px: int,
    expect_groups: bool,
    accept: Collection[str],
) -> tuple[Finding, ...]:
    """Say what is wrong, errors first.

    Args:
        folder: as discovered.
        reports: of each path of the folder.
        duplicates: sets of paths whose bytes are the same.
        near_duplicates: sets of paths whose images look the same.
        min_side_px: images with a shorter side are ``too_small``.
        expect_groups: whether to miss groups where there are none.
        accept: names of findings that the user accepts.
    """
    samples = {item.path: item for item in folder.samples if reports[item.path].trouble is None}
    found = [
        *_refused(reports),
        *_odd({path: reports[path] for path in samples}, min_side_px),
        *_copies(samples, duplicates, "", "exact copies", "exact copy"),
        *_copies(samples, near_duplicates, "near_", "near-copies", "near-copy"),
        *_groups(samples.values(), expect_groups),
        *_classes(samples.values(), folder.class_names),
        *_skipped(folder),
    ]
    findings = (
        Finding(name, RULES[name][0], tuple(paths), message, RULES[name][1], name in accept)
        for name, paths, message in found
    )
    return tuple(
        sorted(
            findings,
            key=lambda item: (_SEVERITIES.index(item.severity), FINDINGS.index(item.name)),
        )
    )


_Found = tuple[str, Iterable[str], str]
"""Name, paths and message of a finding."""


def _refused(reports: Mapping[str, Report]) -> Iterator[_Found]:
    for trouble, what in (("unreadable", "cannot be decoded"), ("too_large", "over the limit")):
        paths = [path for path, report in reports.items() if report.trouble == trouble]
        if paths:
            first = reports[paths[0]].reason
            yield trouble, paths, f"{_count(len(paths), 'image')} {what}; the first: {first}."


def _odd(reports: Mapping[str, Report], min_side_px: int) -> Iterator[_Found]:
    small = [
        path
        for path, report in reports.items()
        if min(report.width_px, report.height_px) < min_side_px
    ]
    if small:
        number = _count(len(small), "image")
        yield "too_small", small, f"{number} with a shorter side below {min_side_px} px."
    constant = [path for path, report in reports.items() if report.is_constant]
    if constant:
        yield "constant", constant, f"{_count(len(constant), 'image')} of one single colour."
    wrong = [
        path
        for path, report in reports.items()
        if PurePosixPath(path).suffix.lower() not in _SUFFIXES[report.format]
    ]
    if wrong:
        formats = _tally(reports[path].format for path in wrong)
        yield (
            "wrong_suffix",
            wrong,
            f"{_count(len(wrong), 'image')} with a wrong suffix: {formats}.",
        )
    modes = Counter(report.mode for report in reports.values()).most_common()
    if len(modes) > 1:
        rarer = [path for path, report in reports.items() if report.mode != modes[0][0]]
        types = _tally(report.mode for report in reports.values())
        yield "mixed_modes", rarer, f"{len(modes)} pixel types: {types}."


def _copies(
    samples: Mapping[str, Sample], sets: Sets, prefix: str, several: str, one: str
) -> Iterator[_Found]:
    """Report each set under what is worst of it, and under both where two are equally bad."""
    kinds: dict[str, list[tuple[str, ...]]] = {
        "conflicting_labels": [],
        "duplicates_across_splits": [],
        "duplicates": [],
    }
    for paths in sets:
        has_conflict = len({samples[path].labels for path in paths}) > 1
        is_across = len({samples[path].split for path in paths} - {None}) > 1
        if has_conflict:
            kinds["conflicting_labels"].append(paths)
        if is_across:
            kinds["duplicates_across_splits"].append(paths)
        if not (has_conflict or is_across):
            kinds["duplicates"].append(paths)
    where = ("an image with other labels", "an image in another split", "another image")
    for (name, found), place in zip(kinds.items(), where, strict=True):
        if found:
            number = _count(sum(len(paths) - 1 for paths in found), one, several)
            paths = tuple(path for paths in found for path in paths)
            yield prefix + name, paths, f"{number} of {place}."


def _groups(samples: Collection[Sample], expect_groups: bool) -> Iterator[_Found]:
    splits: dict[str, set[str]] = {}
    for sample in samples:
        if sample.group is not None and sample.split is not None:
            splits.setdefault(sample.group, set()).add(sample.split)
    parted = {group for group, found in splits.items() if len(found) > 1}
    paths = [sample.path for sample in samples if sample.group in parted]
    if parted:
        number = _count(len(parted), "group")
        yield (
            "group_across_splits",
            paths,
            (f"{number} in several splits, with {_count(len(paths), 'image')}."),
        )
    if expect_groups and all(sample.group is None for sample in samples):
        yield "no_groups", (), f"0 of {_count(len(samples), 'image')} have a group."


def _classes(samples: Collection[Sample], class_names: Sequence[str]) -> Iterator[_Found]:
    counts = count_classes(samples, class_names)
    trained = counts.get("train", counts.get("all", {}))
    # A class that is absent is reported as such.
    order = sorted((name for name in trained if trained[name]), key=lambda name: trained[name])
    if order and trained[order[-1]] >= IMBALANCE_RATIO * trained[order[0]]:
        small, large = order[0], order[-1]
        yield (
            "imbalance",
            (),
            (
                f"{trained[large] / trained[small]:.1f} times as many images of {large} "
                f"({trained[large]}) as of {small} ({trained[small]}) to train on."
            ),
        )
    few = [f"{name} ({trained[name]})" for name in order if trained[name] < FEW_IMAGES]
    if few:
        number = _count(len(few), "class", "classes")
        yield (
            "few_images",
            (),
            (
                f"{number} with fewer than {FEW_IMAGES} images to train on: "
                f"{_join(few, _CLASSES_NAMED)}."
            ),
        )
    missing = [
        name if split == "all" else f"{name} in {split}"
        for split, of_split in counts.items()
        for name in class_names
        if not of_split[name]
    ]
    if missing:
        number = _count(len(missing), "class", "classes")
        yield "missing_class", (), f"{number} without an image: {_join(missing, _CLASSES_NAMED)}."


def count_classes(
    samples: Collection[Sample], class_names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count images per split (``all`` where nobody has decided) and class.

    An image of several labels counts for each of them.
    """
    pairs = Counter((sample.split, name) for sample in samples for name in sample.labels)
    present = {sample.split for sample in samples}
    return {
        split or "all": {name: pairs[split, name] for name in class_names}
        for split in (None, "train", "val", "test")
        if split in present
    }


def _skipped(folder: ImageFolder) -> Iterator[_Found]:
    if folder.skipped:
        number = _count(len(folder.skipped), "file or folder", "files or folders")
        counts = Counter(item.reason for item in folder.skipped)
        reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())
        yield "skipped", [item.path for item in folder.skipped], f"{number} left out: {reasons}."


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _tally(values: Iterable[str]) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())


def _join(words: Iterable[str], limit: int) -> str:
    words = list(words)
    more = [f"{len(words) - limit} more"] if len(words) > limit else []
    return ", ".join([*words[:limit], *more])
