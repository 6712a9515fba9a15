"""The batch-size finder: how many images fit into memory, and how many are worth it."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune.training.lr_finder import restored
from finetune.training.module import FineTuning

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_SHARE_OF_MEMORY = 0.5
"""Of what is available on a CPU: decoding workers, and other programs, need some as well."""
_NEARLY_AS_FAST = 0.95


@dataclass(frozen=True)
class Attempt:
    """One batch size that was tried.

    Attributes:
        batch_size: images.
        images_per_second: forward and backward; None if they did not fit into memory.
    """

    batch_size: int
    images_per_second: float | None


@dataclass(frozen=True)
class BatchSize:
    """What the finder found.

    Attributes:
        largest: images that fit into memory; None if a single one does not.
        suggestion: the smallest batch that was tried within 5 % of the fastest; None likewise.
        attempts: in the order in which they were made.
        reason: for ``largest``.
    """

    largest: int | None
    suggestion: int | None
    attempts: tuple[Attempt, ...]
    reason: str


def find_batch_size(
    attempt: Callable[[int], None],
    *,
    start: int,
    largest: int,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSize:
    """Double until memory is full, then halve the rest; sizes are multiples of 8, or 1, 2 or 4.

    Each size is tried twice, and the faster time counts: the first pays for caches and tuning.

    Args:
        attempt: computes on so many images, or runs out of memory; see `attempt_step`.
        start: first size, >= 1; taken down to one of ours.
        largest: no size above is tried, >= 1; the training images, or `largest_by_memory`.
        clock: seconds.

    Raises:
        ValueError: ``start`` or ``largest`` is below 1.
    """
    if start < 1 or largest < 1:
        raise ValueError(f"got start {start} and largest {largest}, expected both >= 1.")
    attempts: list[Attempt] = []

    def fits(size: int) -> bool:
        seconds = _seconds(attempt, size, clock)
        attempts.append(Attempt(size, None if seconds is None else size / max(seconds, 1e-9)))
        return seconds is not None

    limit = round_down(largest)
    size, known, failed = round_down(min(start, limit)), 0, limit + 1
    while fits(size):
        known = size
        if size == limit:
            break
        size = round_down(min(2 * size, limit))
    else:
        failed = size
    while failed <= limit and (middle := _between(known, failed)) is not None:
        if fits(middle):
            known = middle
        else:
            failed = middle
    speeds = [(a.batch_size, a.images_per_second) for a in attempts if a.images_per_second]
    return BatchSize(
        largest=known or None,
        suggestion=smallest_fast(speeds) if speeds else None,
        attempts=tuple(attempts),
        reason=f"{failed} images do not fit into memory"
        if failed <= limit
        else f"no more than {largest} were to be tried",
    )


def smallest_fast(speeds: Sequence[tuple[int, float]]) -> int:
    """Give the smallest batch size whose images per second are within 5 % of the most.

    Args:
        speeds: batch sizes with their images per second; at least one.
    """
    fastest = max(speed for _, speed in speeds)
    return min(size for size, speed in speeds if speed >= _NEARLY_AS_FAST * fastest)


def round_down(size: int) -> int:
    """Give the largest size to try that is no larger: a multiple of 8, or 4, 2, 1 or 0.

    Tensor cores want multiples of 8 (NVIDIA, Deep Learning Performance Guide).
    """
    return size // 8 * 8 if size >= 8 else next(small for small in (4, 2, 1, 0) if small <= size)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory was too small, in any of the ways in which torch says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # cuDNN, cuBLAS and the allocator of main memory raise plain RuntimeErrors.
    signs = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def attempt_step(
    module: FineTuning,
    image_size_px: int,
    *,
    dtype: torch.dtype | None = None,
    moments: int = 2,
) -> Callable[[int], None]:
    """Make what `find_batch_size` asks for: forward and backward of images that mean nothing.

    Afterwards the module and all random generators are as before.

    Args:
        module: on the device to train on.
        image_size_px: side of the images.
        dtype: of autocast; None computes in float32.
        moments: tensors that the optimizer keeps for each parameter, which take memory as well:
            2 for Adam and its like, 1 for SGD with momentum.
    """
    device = next(module.parameters()).device
    num_classes = len(module.class_names)

    def attempt(num_images: int) -> None:
        with restored(module):
            module.train()
            learning = [p for p in module.parameters() if p.requires_grad]
            kept = [torch.ones_like(p) for p in learning for _ in range(moments)]
            shape = (num_images, 3, image_size_px, image_size_px)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
            targets = torch.randint(0, num_classes, (num_images,), device=device)
            if module.task == "multilabel":
                targets = torch.nn.functional.one_hot(targets, num_classes).float()
            if module.mix is not None:
                images, targets = module.mix(images, targets, np.random.default_rng(0))
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = module.loss(module(images), targets)
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            del kept

    return attempt


def largest_by_memory(attempt: Callable[[int], None], *, small: int = 8) -> int | None:
    """Estimate on a CPU how many images fit, where too many would end the process by force.

    Measures the peak of two small batches, and draws a line through them to half of the memory
    available.

    Args:
        attempt: see `attempt_step`.
        small: size of the first batch, >= 1; the second has four times as many.

    Returns:
        Images, at least 1; None where this system does not say, or the peaks show nothing.
    """
    available = available_bytes()
    if available is None:
        return None
    attempt(small)  # what is set up once shall not count as the images'
    peaks = []
    for size in (small, 4 * small):
        _forget_peak()
        attempt(size)
        peak = peak_bytes()
        if peak is None:
            return None
        peaks.append((size, peak))
    resident = resident_bytes() or 0
    return extrapolate(peaks[0], peaks[1], limit_bytes=resident + int(_SHARE_OF_MEMORY * available))


def extrapolate(first: tuple[int, int], second: tuple[int, int], *, limit_bytes: int) -> int | None:
    """Give the images at which a line through two peaks reaches the limit, at least 1.

    Args:
        first: images and the peak in bytes.
        second: the same of more images.
        limit_bytes: of the whole process.

    Returns:
        None if the peak does not rise with the images, so that nothing can be said.
    """
    per_image = (second[1] - first[1]) / (second[0] - first[0])
    if per_image <= 0:
        return None
    return max(1, math.floor(first[0] + (limit_bytes - first[1]) / per_image))


def available_bytes() -> int | None:
    """Read how much memory may still be taken, by this machine and by this container."""
    amounts = []
    of_machine = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    if of_machine is not None:
        amounts.append(of_machine)
    try:  # of a container (cgroup v2): the machine's own figures say nothing of it
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        amounts.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such group, or "max" for no limit
        pass
    return max(0, min(amounts)) if amounts else None


def peak_bytes() -> int | None:
    """Read the most memory that this process has held; None where the system does not say."""
    peak = _kilobytes(Path("/proc/self/status"), "VmHWM")
    if peak is None and resource is not None:
        # Bytes on macOS, kilobytes elsewhere.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def resident_bytes() -> int | None:
    """Read how much memory this process holds; None where the system does not say."""
    return _kilobytes(Path("/proc/self/status"), "VmRSS")


def _forget_peak() -> None:
    # Linux: the peak starts again from what is held now.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_bytes(b"5")


def _kilobytes(path: Path, key: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _between(known: int, failed: int) -> int | None:
    middle = round_down((known + failed) // 2)
    if middle <= known:
        middle = known + 8 if known >= 8 else max(1, 2 * known)
    return middle if middle < failed else None


def _seconds(attempt: Callable[[int], None], size: int, clock: Callable[[], float]) -> float | None:
    fastest = math.inf
    try:
        for _ in range(2):
            start = clock()
            attempt(size)
            fastest = min(fastest, clock() - start)
        return fastest
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Here, after the error and the tensors in its frames are gone.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
