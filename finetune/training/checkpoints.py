"""Checkpoints that are written whole or not at all, and read without running what is in them."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from finetune.errors import ModelError
from finetune.run import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush, rename; read with ``weights_only=True``.

    Lightning itself writes to the temporary folder and moves: a kill during the move loses the
    old file and the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save; ``path`` is the old file or the whole new one at any moment."""
        del storage_options
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            torch.save(checkpoint, temporary)

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
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file can raise any
        reason = str(error).split("\n")[0][:200]
        raise ModelError(f"{path} is not a checkpoint of finetune: {reason}") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ModelError(f"{path} is not a checkpoint of finetune: it has no state_dict.")
    return content
