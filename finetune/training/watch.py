"""Stop at the step whose loss is no number, without making a GPU wait for it."""

import torch
from torch import Tensor


class LossWatch:
    """Tell whether losses are finite: on a CPU of this step, on a GPU of the step before.

    A GPU computes a step while the CPU prepares the next; to ask for the loss at once would make
    it idle. So the answer is copied in the background, and read one step later.
    """

    def __init__(self) -> None:
        self._flag: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def is_finite(self, loss: Tensor) -> bool:
        """Take a step's loss; False as soon as one is known not to be finite."""
        now = torch.isfinite(loss.detach()).all()
        if now.device.type != "cuda":
            return bool(now)
        known = self._read()
        self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._flag.copy_(now, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return known

    def _read(self) -> bool:
        if self._flag is None or self._copied is None:
            return True
        self._copied.synchronize()
        return bool(self._flag)
