"""Checkpoints that are written whole or not at all, and read without running what is in them.

A checkpoint is a file of ``torch.save`` whose ZIP comment holds the SHA-256 of the rest: torch
checks no sums itself, and would load weights with a flipped bit. Whoever has torch can open it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from finetune.errors import ModelError
from finetune.run import replacing

_MARK = b"finetune sha256 "
_COMMENT_BYTES = len(_MARK) + hashlib.sha256().digest_size * 2
_LENGTH_BYTES = 2
"""A ZIP file ends with the length of its comment, two bytes, and the comment."""
_KINDS = {
    "state_dict": dict,
    "callbacks": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
}
"""What each part of a checkpoint is, if it is there."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush, rename; read with ``weights_only=True``.

    Lightning itself writes to the temporary folder and moves: a kill during the move loses the
    old file and the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save; ``path`` is the old file or the whole new one at any moment.

        Raises:
            OSError: the disk is full, or does not take it; the old file is as it was.
        """
        del storage_options
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary, temporary.open("wb") as file:
            _write_sealed(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load tensors and plain values.

        Raises:
            ModelError: the file is missing, damaged, or holds anything else.
        """
        del weights_only
        return load_checkpoint(Path(path), map_location=map_location or "cpu")


def load_checkpoint(path: Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours, running nothing that is in it.

    Raises:
        ModelError: the file is missing, damaged, no checkpoint, or holds objects that only
            running code could restore.
    """
    if not path.is_file():
        raise ModelError(f"{path}: there is no such checkpoint.")
    try:
        _check_seal(path)
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file can raise any
        reason = str(error).split("\n")[0][:200]
        raise ModelError(f"{path} is not a checkpoint of finetune: {reason}") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ModelError(f"{path} is not a checkpoint of finetune: it has no state_dict.")
    for key, kind in _KINDS.items():
        if key in content and not isinstance(content[key], kind):
            raise ModelError(
                f"{path} is not a checkpoint of finetune: {key} is a {type(content[key]).__name__}."
            )
    if not all(isinstance(value, torch.Tensor) for value in content["state_dict"].values()):
        raise ModelError(f"{path} is not a checkpoint of finetune: not all weights are tensors.")
    return content


def newest_valid(paths: Sequence[Path]) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint that goes on from the latest step; of equals the first.

    By the step that is written in it, since a clock can be set back.

    Args:
        paths: of checkpoints; those that are not there are left out.

    Returns:
        The path, or None where none can be read; and what is wrong with each that cannot.
    """
    steps: dict[Path, int] = {}
    damages: list[str] = []
    for path in paths:
        if not path.exists():
            continue
        try:
            steps[path] = int(load_checkpoint(path)["global_step"])
        except (ModelError, KeyError, TypeError, ValueError) as error:
            damages.append(str(error))
    return max(steps, key=lambda path: steps[path], default=None), damages


class _Hashing:
    """A file to write to, whose content is hashed on its way; remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write_sealed(content: dict[str, Any], file: BinaryIO) -> None:
    hashing = _Hashing(file)
    try:
        torch.save(content, cast(BinaryIO, hashing))
    except RuntimeError:
        if hashing.failure is not None:  # torch says only where in its writer it noticed
            raise hashing.failure from None
        raise
    file.seek(-_LENGTH_BYTES, 2)
    file.write(_COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little"))
    file.write(_MARK + hashing.digest.hexdigest().encode())


def _check_seal(path: Path) -> None:
    """Compare the file with its comment.

    Raises:
        ValueError: there is none, as in a file that was cut off, or it says otherwise.
    """
    left = path.stat().st_size - _COMMENT_BYTES - _LENGTH_BYTES
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        digest.update(bytes(_LENGTH_BYTES))  # as they were when the digest was taken
        comment = file.read()[_LENGTH_BYTES:]
    if not comment.startswith(_MARK):
        raise ValueError("it has no checksum at its end, so it was cut off, or made elsewhere")
    if comment != _MARK + digest.hexdigest().encode():
        raise ValueError("its checksum is not that of its content; it is damaged")
