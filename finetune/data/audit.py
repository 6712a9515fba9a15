"""What is wrong with a folder of images, before anything is trained on it."""

import hashlib
import multiprocessing
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from finetune.data.decode import decode_image, read_header
from finetune.data.discover import ImageFolder, Sample
from finetune.errors import DataError, ImageError

Severity = Literal["error", "warning", "info"]

_SUFFIXES: dict[str, frozenset[str]] = {
    "AVIF": frozenset({".avif"}),
    "BMP": frozenset({".bmp"}),
    "GIF": frozenset({".gif"}),
    "JPEG": frozenset({".jpg", ".jpeg"}),
    "PNG": frozenset({".png"}),
    "TIFF": frozenset({".tif", ".tiff"}),
    "WEBP": frozenset({".webp"}),
}
# Name of the finding to its severity, where the copies are, and the remedy.
_DUPLICATES: dict[str, tuple[Severity, str, str]] = {
    "duplicate_across_classes": (
        "error",
        ", in several classes",
        "Decide on one class, and remove the others.",
    ),
    "duplicate_across_splits": (
        "error",
        ", in several splits",
        "Keep each in one split: what is tested on must not be trained on.",
    ),
    "duplicate": ("warning", "", "Keep one of each; the others only weigh it more."),
}
_IMAGES_PER_TASK = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble and all the files that have it.

    Attributes:
        name: stable, for programs: ``unreadable``, ``duplicate_across_splits``, ….
        severity: ``error`` spoils the result, ``warning`` may, ``info`` is good to know.
        paths: POSIX, relative to the folder's root.
        message: what was found.
        remedy: the nearest fix.
    """

    name: str
    severity: Severity
    paths: tuple[str, ...]
    message: str
    remedy: str


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
        counts: images per split (``all`` where there are none) and class.
        width_px: of the readable images, after EXIF orientation; None if there are none.
        height_px: likewise.
        formats: readable images per file format.
        modes: readable images per pixel type, as Pillow names it.
        unreadable: path to reason.
        duplicates: sets of paths whose bytes are the same.
        findings: errors first.
    """

    num_images: int
    counts: dict[str, dict[str, int]]
    width_px: Range | None
    height_px: Range | None
    formats: dict[str, int]
    modes: dict[str, int]
    unreadable: dict[str, str]
    duplicates: tuple[tuple[str, ...], ...]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def audit_folder(
    folder: ImageFolder,
    *,
    workers: int = 0,
    max_megapixels: float = 200,
    on_progress: Callable[[int], None] | None = None,
) -> Audit:
    """Decode every image of a folder in full, and report what is wrong.

    Args:
        folder: as discovered.
        workers: processes that decode; 0 decodes in this one. They are spawned, so a script
            that asks for some needs ``if __name__ == "__main__":``.
        max_megapixels: images with more pixels than this, in millions, count as unreadable.
        on_progress: called after each image with the number done so far.

    Raises:
        DataError: a worker process died.
    """
    reports = []
    for report in _inspect_all(folder, workers, max_megapixels):
        reports.append(report)
        if on_progress is not None:
            on_progress(len(reports))
    paths = [sample.path for sample in folder.samples]
    readable = [report for report in reports if report.error is None]
    unreadable = {
        path: report.error
        for path, report in zip(paths, reports, strict=True)
        if report.error is not None
    }
    duplicates = _find_duplicates(paths, reports)
    findings = [
        *_report_unreadable(unreadable),
        *_report_duplicates(folder.samples, duplicates),
        *_report_missing_classes(folder),
        *_report_suffixes(paths, reports),
        *_report_skipped(folder),
    ]
    severities: tuple[Severity, ...] = ("error", "warning", "info")
    return Audit(
        num_images=len(reports),
        counts=_count(folder),
        width_px=_range([report.width_px for report in readable]),
        height_px=_range([report.height_px for report in readable]),
        formats=dict(Counter(report.format for report in readable).most_common()),
        modes=dict(Counter(report.mode for report in readable).most_common()),
        unreadable=unreadable,
        duplicates=duplicates,
        findings=tuple(sorted(findings, key=lambda item: severities.index(item.severity))),
    )


@dataclass(frozen=True, slots=True)
class _Report:
    """One image; ``error`` is None if it was decoded, and only then is the rest complete."""

    error: str | None
    digest: bytes = b""
    format: str = ""
    mode: str = ""
    width_px: int = 0
    height_px: int = 0


def _inspect_all(folder: ImageFolder, workers: int, max_megapixels: float) -> Iterator[_Report]:
    paths = [folder.root / sample.path for sample in folder.samples]
    inspect = partial(_inspect, max_megapixels=max_megapixels)
    if workers < 1:
        yield from map(inspect, paths)
        return
    # A fork would copy whatever locks the threads of this process hold.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield from pool.map(inspect, paths, chunksize=_IMAGES_PER_TASK)
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that decoded {folder.root} died, for lack of memory perhaps; expected it "
            "to go on. Try fewer workers, or a lower max_megapixels."
        ) from error


def _inspect(path: Path, *, max_megapixels: float) -> _Report:
    try:
        data = path.read_bytes()
    except OSError as error:
        return _Report(error=f"cannot be read: {error.strerror}")
    digest = hashlib.sha256(data).digest()
    try:
        header = read_header(data)
        height_px, width_px, _ = decode_image(data, max_megapixels=max_megapixels).shape
    except ImageError as error:
        return _Report(error=str(error), digest=digest)
    return _Report(None, digest, header.format, header.mode, width_px, height_px)


def _count(folder: ImageFolder) -> dict[str, dict[str, int]]:
    pairs = Counter((sample.split, sample.class_name) for sample in folder.samples)
    present = {sample.split for sample in folder.samples}
    return {
        split or "all": {name: pairs[split, name] for name in folder.class_names}
        for split in (None, "train", "val", "test")
        if split in present
    }


def _range(values: Sequence[int]) -> Range | None:
    return Range(min(values), statistics.median(values), max(values)) if values else None


def _find_duplicates(
    paths: Sequence[str], reports: Sequence[_Report]
) -> tuple[tuple[str, ...], ...]:
    same: dict[bytes, list[str]] = {}
    for path, report in zip(paths, reports, strict=True):
        if report.digest:
            same.setdefault(report.digest, []).append(path)
    return tuple(tuple(group) for group in same.values() if len(group) > 1)


def _report_unreadable(unreadable: dict[str, str]) -> Iterator[Finding]:
    if unreadable:
        path, reason = next(iter(unreadable.items()))
        yield Finding(
            "unreadable",
            "error",
            tuple(unreadable),
            f"{len(unreadable)} images cannot be decoded; the first, {path}: {reason}.",
            "Replace or remove them.",
        )


def _report_duplicates(
    samples: Sequence[Sample], duplicates: Sequence[tuple[str, ...]]
) -> Iterator[Finding]:
    """Report each set of equal files under the worst that is true of it."""
    by_path = {sample.path: sample for sample in samples}
    sets: dict[str, list[tuple[str, ...]]] = {name: [] for name in _DUPLICATES}
    for paths in duplicates:
        if len({by_path[path].class_name for path in paths}) > 1:
            sets["duplicate_across_classes"].append(paths)
        elif len({by_path[path].split for path in paths}) > 1:
            sets["duplicate_across_splits"].append(paths)
        else:
            sets["duplicate"].append(paths)
    for name, (severity, where, remedy) in _DUPLICATES.items():
        if sets[name]:
            copies = sum(len(paths) - 1 for paths in sets[name])
            yield Finding(
                name,
                severity,
                tuple(path for paths in sets[name] for path in paths),
                f"{copies} images are copies of another{where}.",
                remedy,
            )


def _report_missing_classes(folder: ImageFolder) -> Iterator[Finding]:
    for split, counts in _count(folder).items():
        missing = [name for name, count in counts.items() if count == 0]
        if missing:
            yield Finding(
                "missing_class",
                "warning",
                (),
                f"{split} has no image of {', '.join(missing)}.",
                f"Add some to {split}: what is not there is not measured.",
            )


def _report_suffixes(paths: Sequence[str], reports: Sequence[_Report]) -> Iterator[Finding]:
    wrong = {
        path: report.format
        for path, report in zip(paths, reports, strict=True)
        if report.format and PurePosixPath(path).suffix.lower() not in _SUFFIXES[report.format]
    }
    if wrong:
        path, format_ = next(iter(wrong.items()))
        yield Finding(
            "wrong_suffix",
            "info",
            tuple(wrong),
            f"{len(wrong)} images are not what their suffix says; the first, {path}, is {format_}.",
            "Nothing breaks here, as the content counts; other programs may refuse them.",
        )


def _report_skipped(folder: ImageFolder) -> Iterator[Finding]:
    reasons = Counter(item.reason for item in folder.skipped)
    for reason, count in reasons.items():
        yield Finding(
            "skipped",
            "info",
            tuple(item.path for item in folder.skipped if item.reason == reason),
            f"{count} files or folders were left out: {reason}.",
            "Nothing to do, unless they were meant to be trained on.",
        )
