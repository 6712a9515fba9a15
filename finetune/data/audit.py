"""What is wrong with a folder of images, before anything is trained on it."""

import os
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.auditing.audit_cache import AuditCache
from finetune.data.auditing.duplicates import find_near_duplicates
from finetune.data.auditing.examine import Report, examine_files
from finetune.data.auditing.findings import Finding, count_classes, list_findings
from finetune.data.auditing.fingerprint import SIZE
from finetune.data.discover import ImageFolder
from finetune.data.stamps import Stamp
from finetune.errors import DataError

__all__ = ["Audit", "Finding", "Range", "audit_folder", "check_findings", "not_audited"]

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest, middle and largest of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What a folder of images is like.

    Attributes:
        num_images: all samples, readable or not.
        counts: images per split (``all`` where there are none) and class, readable or not.
        width_px: of the readable images, after EXIF orientation; None if there are none.
        height_px: likewise.
        formats: readable images per file format.
        modes: readable images per pixel type, as Pillow names it.
        unreadable: path to reason, of all that is left out: damaged or too large.
        duplicates: sets of paths whose bytes are the same.
        near_duplicates: sets of paths whose images look the same; of each set of
            ``duplicates``, only the first path is among them.
        findings: errors first.
        notes: what went wrong with the audit itself.
        digests: path to SHA-256 of the content, in hexadecimal, of the readable images.
        stamps: path to what the file was like, of the readable images.
    """

    num_images: int
    counts: dict[str, dict[str, int]]
    width_px: Range | None
    height_px: Range | None
    formats: dict[str, int]
    modes: dict[str, int]
    unreadable: dict[str, str]
    duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the digests and stamps."""
        values = asdict(replace(self, digests={}, stamps={}))
        del values["digests"], values["stamps"]
        return values


def audit_folder(
    folder: ImageFolder,
    *,
    workers: int = 0,
    max_megapixels: float = 200,
    min_side_px: int = 1,
    expect_groups: bool = False,
    accept: Collection[str] = (),
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Audit:
    """Decode every image of a folder in full, and report what is wrong.

    Args:
        folder: as discovered.
        workers: processes that decode; 0 decodes in this one. They are spawned, so a script
            that asks for some needs ``if __name__ == "__main__":``.
        max_megapixels: images with more pixels than this, in millions, are left out.
        min_side_px: images with a shorter side are reported.
        expect_groups: report that no image has a group.
        accept: names of findings that the user accepts.
        cache: folder for what is found, so that a file that did not change is not decoded the
            next time; made where there is none. None keeps nothing.
        on_progress: called with the number of images done so far.

    Raises:
        DataError: a worker process died.
    """
    kept = AuditCache(cache, folder.root, max_megapixels=max_megapixels)
    seen = _look_at_files(folder)
    reports = _examine(folder, kept, workers, max_megapixels, on_progress)
    readable = {path: report for path, report in reports.items() if report.trouble is None}
    duplicates = _find_duplicates(readable)
    near_duplicates = _find_near_duplicates(readable, duplicates)
    digests = {path: report.digest.hex() for path, report in readable.items()}
    return Audit(
        num_images=len(folder.samples),
        counts=count_classes(folder.samples, folder.class_names),
        width_px=_range([report.width_px for report in readable.values()]),
        height_px=_range([report.height_px for report in readable.values()]),
        formats=dict(Counter(report.format for report in readable.values()).most_common()),
        modes=dict(Counter(report.mode for report in readable.values()).most_common()),
        unreadable={path: report.reason for path, report in reports.items() if report.trouble},
        duplicates=duplicates,
        near_duplicates=near_duplicates,
        findings=list_findings(
            folder,
            reports,
            duplicates,
            near_duplicates,
            min_side_px=min_side_px,
            expect_groups=expect_groups,
            accept=accept,
        ),
        notes=tuple(kept.notes),
        digests=digests,
        stamps={
            path: Stamp(*seen[path], digest) for path, digest in digests.items() if path in seen
        },
    )


def not_audited(folder: ImageFolder) -> Audit:
    """Say what is known of a folder before any image is opened: files that are not there."""
    seen = _look_at_files(folder)
    gone = [sample.path for sample in folder.samples if sample.path not in seen]
    return Audit(
        num_images=len(folder.samples),
        counts=count_classes(folder.samples, folder.class_names),
        width_px=None,
        height_px=None,
        formats={},
        modes={},
        unreadable=dict.fromkeys(gone, "no such file"),
        duplicates=(),
        near_duplicates=(),
        findings=(),
    )


def check_findings(audit: Audit) -> None:
    """Let nothing pass that spoils the result, unless the user accepted it.

    Raises:
        DataError: names every error, its remedy, some of its files, and how to accept it.
    """
    errors = [item for item in audit.findings if item.severity == "error" and not item.accepted]
    if not errors:
        return
    names = [item.name for item in audit.findings if item.accepted or item in errors]
    raise DataError(
        "\n".join(
            [
                f"the data has {len(errors)} error{'s'[: len(errors) - 1]}, expected none.",
                *(f"{item.message} {item.remedy}\n  {_examples(item.paths)}" for item in errors),
                f"To go on all the same: dataset.accept=[{','.join(names)}]",
            ]
        )
    )


def _examples(paths: Sequence[str]) -> str:
    shown = [path if path.isprintable() else repr(path) for path in paths[:_EXAMPLES]]
    more = [f"{len(paths) - _EXAMPLES} more"] if len(paths) > _EXAMPLES else []
    return ", ".join([*shown, *more])


def _look_at_files(folder: ImageFolder) -> dict[str, tuple[int, int]]:
    """Give size and modification time of each file that is there, by path.

    Before anything is read: what changes later, while it is read, then looks changed.
    """
    seen = {}
    for sample in folder.samples:
        with suppress(OSError, ValueError):  # no such file; a name that no file can have
            status = os.stat(folder.root / sample.path)  # noqa: PTH116 - as in `Stamps`
            seen[sample.path] = (status.st_size, status.st_mtime_ns)
    return seen


def _examine(
    folder: ImageFolder,
    kept: AuditCache,
    workers: int,
    max_megapixels: float,
    on_progress: Callable[[int], None] | None,
) -> dict[str, Report]:
    """Return the report of each path, in the folder's order."""
    known = {sample.path: kept.get(sample.path) for sample in folder.samples}
    reports = {path: report for path, report in known.items() if report is not None}
    new = [path for path, report in known.items() if report is None]
    if on_progress is not None and reports:
        on_progress(len(reports))
    files = [folder.root / path for path in new]
    try:
        found = examine_files(files, workers=workers, max_megapixels=max_megapixels)
        for path, report in zip(new, found, strict=True):
            reports[path] = report
            kept.put(path, report)
            if on_progress is not None:
                on_progress(len(reports))
    finally:
        kept.save()  # what was examined before an interruption, too
    return {path: reports[path] for path in known}


def _range(values: Sequence[int]) -> Range | None:
    return Range(min(values), statistics.median(values), max(values)) if values else None


def _find_duplicates(reports: Mapping[str, Report]) -> tuple[tuple[str, ...], ...]:
    same: dict[bytes, list[str]] = {}
    for path, report in reports.items():
        same.setdefault(report.digest, []).append(path)
    return tuple(tuple(paths) for paths in same.values() if len(paths) > 1)


def _find_near_duplicates(
    reports: Mapping[str, Report], duplicates: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    others = {path for paths in duplicates for path in paths[1:]}
    paths = [path for path, report in reports.items() if report.fingerprint and path not in others]
    looks = np.frombuffer(b"".join(reports[path].fingerprint for path in paths), np.float16)
    sets = find_near_duplicates(looks.reshape(-1, SIZE))
    return tuple(tuple(paths[index] for index in indices) for indices in sets)
