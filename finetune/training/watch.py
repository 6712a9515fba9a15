"""Stop at the step whose loss is no number, and where all agree, without making a GPU wait."""

import torch
from torch import Tensor


class StepWatch:
    """Read numbers of each step: on a CPU those of this step, on a GPU those of the step before.

    A GPU computes a step while the CPU prepares the next; to ask for a number at once would make
    it idle. So it is copied in the background, and read one step later.
    """

    def __init__(self) -> None:
        self._numbers: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def read(self, numbers: Tensor) -> list[float] | None:
        """Take a step's numbers ``[N]`` and return those that are known; None for not yet."""
        now = numbers.detach()
        if now.device.type != "cuda":
            known: list[float] = now.tolist()
            return known
        before = self._read()
        self._numbers = torch.empty(now.shape, dtype=now.dtype, pin_memory=True)
        self._numbers.copy_(now, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return before

    def _read(self) -> list[float] | None:
        if self._numbers is None or self._copied is None:
            return None
        self._copied.synchronize()
        known: list[float] = self._numbers.tolist()
        return known
