"""From what a library raises when something breaks, to one sentence of cause and remedy."""

import errno
import re

import torch

from finetune.errors import DataError, FinetuneError, TrainingError

_DISK = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EFBIG: "files of that size are not allowed there",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EIO: "the disk may be broken; copy the run elsewhere",
    errno.ESTALE: "mount it again",
}
_WORKER = re.compile(r"DataLoader worker .*?(?:killed by signal: (\w[\w ]*)|exited unexpectedly)")
_PEER = re.compile(
    r"connection (closed|reset) by peer|connection refused|broken pipe|timed out|timeout|gloo|nccl",
    re.IGNORECASE,
)


def explain(error: BaseException, *, num_processes: int) -> FinetuneError | None:
    """Say what broke and what to do.

    Args:
        error: as it was raised, perhaps in a worker and wrapped in its traceback.
        num_processes: that train together.

    Returns:
        The error for the user; None where only a programmer can say more.
    """
    text = str(error)
    if isinstance(error, DataError):
        # A worker's exception comes wrapped in its traceback; the last line is ours.
        last = text.strip().rsplit("\n", 1)[-1]
        return DataError(last.rpartition("DataError: ")[2]) if "Traceback" in text else error
    if isinstance(error, FinetuneError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return _out_of_memory("The GPU's memory is too small", text.split(".")[0])
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return _out_of_memory("There is too little memory", text.split("DefaultCPUAllocator: ")[-1])
    if isinstance(error, OSError):
        return explain_disk(error)
    if not isinstance(error, RuntimeError):
        return None
    worker = _WORKER.search(text)
    if worker is not None:
        return _worker_died(worker[1])
    peer = _PEER.search(text)
    if num_processes > 1 and peer is not None:
        return TrainingError(
            f"One of the {num_processes} processes that train together has ended, or cannot be "
            f"reached any more ({peer[0].lower()}); its own message, if it left one, says why."
        )
    return None


def explain_disk(error: OSError) -> TrainingError | None:
    """Say which file could not be written and why; None where the disk has no part in it."""
    number, reason, name = error.errno, error.strerror, error.filename
    if number is None:  # of a worker, whose error is a text by now
        found = re.search(r"\[Errno (\d+)\] ([^\n:]*)(?:: '([^'\n]+)')?", str(error))
        if found is None:
            return None
        number, reason, name = int(found[1]), found[2], found[3]
    if number not in _DISK:
        return None
    what = "A file" if name is None else f"{name}"
    return TrainingError(f"{what} could not be written: {reason}; {_DISK[number]}.")


def _out_of_memory(what: str, detail: str) -> TrainingError:
    return TrainingError(
        f"{what}: {_first_line(detail) or 'the system gives no more'}. Try a smaller "
        "trainer.batch_size (with trainer.accumulate_batches to keep the step), or a smaller "
        "model.image_size_px; trainer.batch_size=find tries what fits."
    )


def _worker_died(signal_name: str | None) -> TrainingError:
    if signal_name is not None and signal_name.startswith("Bus error"):
        return TrainingError(
            "The memory that processes share (/dev/shm) is full. Make it larger (in a container: "
            "--shm-size=2g), or decode in this process: dataset.workers=0."
        )
    how = f"was killed ({signal_name})" if signal_name else "has ended"
    return TrainingError(
        f"A process that decodes images {how}; the system does that when memory runs out. Try "
        "fewer: dataset.workers=1, or 0."
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:160].rstrip(".")
