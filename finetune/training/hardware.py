"""What this machine computes on, in which number format, and why."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from finetune.errors import ConfigError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Hardware:
    """What a training runs on; each choice with its reason.

    Attributes:
        accelerator: ``cpu`` or ``gpu``.
        devices: processes on each node.
        num_nodes: machines.
        strategy: ``auto`` (one process), ``ddp`` or ``fsdp``.
        precision: as Lightning names it.
        reasons: what was decided, for the plan.
    """

    accelerator: Literal["cpu", "gpu"]
    devices: int
    num_nodes: int
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Precision
    reasons: dict[str, str]

    @property
    def device(self) -> torch.device:
        """The first device, for what one process does alone."""
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        known = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return known.get(self.precision, torch.float32)

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes


def choose_hardware(
    *,
    accelerator: Literal["auto", "cpu", "gpu"],
    strategy: Literal["auto", "ddp", "fsdp"],
    devices: int | Literal["auto"],
    num_nodes: int,
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed"],
) -> Hardware:
    """Settle every ``auto`` by what is there.

    Raises:
        ConfigError: a GPU is asked for where there is none, or more devices than there are.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "gpu" and gpus == 0:
        raise ConfigError(
            "trainer.accelerator: got gpu, but torch finds no CUDA device here; use trainer=cpu."
        )
    kind: Literal["cpu", "gpu"] = "gpu" if gpus and accelerator != "cpu" else "cpu"
    available = gpus if kind == "gpu" else None
    count = (available or 1) if devices == "auto" else devices
    if available is not None and count > available:
        raise ConfigError(f"trainer.devices: got {count}, but this machine has {available} GPU(s).")
    number_format, reason = choose_precision(kind, precision)
    several = count * num_nodes > 1
    if strategy == "fsdp" and kind == "cpu":
        raise ConfigError("trainer.strategy: got fsdp, which needs GPUs; use trainer=ddp here.")
    chosen = strategy if strategy != "auto" else ("ddp" if several else "auto")
    device = torch.cuda.get_device_name(0) if kind == "gpu" else f"CPU, {os.cpu_count()} cores"
    return Hardware(
        accelerator=kind,
        devices=count,
        num_nodes=num_nodes,
        strategy=chosen,
        precision=number_format,
        reasons={
            "device": f"{count} × {device}" if count > 1 else device,
            "precision": f"{number_format} ({reason})",
            "strategy": f"{chosen}, {count * num_nodes} processes" if several else "one process",
        },
    )


def choose_precision(
    accelerator: Literal["cpu", "gpu"],
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed"],
) -> tuple[Precision, str]:
    """Return the number format and the reason for it.

    ``auto`` takes bfloat16 only where the hardware multiplies it natively: emulated, it is
    slower than float32.

    Raises:
        ConfigError: ``16-mixed`` on a CPU.
    """
    if precision == "16-mixed" and accelerator == "cpu":
        raise ConfigError(
            "trainer.precision: got 16-mixed, which needs a GPU; use bf16-mixed or 32 here."
        )
    if precision == "32":
        return "32-true", "as asked"
    if precision != "auto":
        return precision, "as asked"
    if accelerator == "gpu":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has native bfloat16"
        if torch.cuda.get_device_capability()[0] >= 7:
            return "16-mixed", "this GPU has float16 tensor cores, but no bfloat16"
        return "32-true", "this GPU has no fast half precision"
    if has_native_bfloat16():
        return "bf16-mixed", "this CPU has native bfloat16"
    return "32-true", "this CPU has no native bfloat16"


def has_native_bfloat16() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware (avx512_bf16 or amx_bf16)."""
    cpu = torch.backends.cpu
    checks = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        getattr(torch.cpu, "_is_amx_tile_supported", None),
    )
    return cpu.get_cpu_capability() != "DEFAULT" and any(check() for check in checks if check)


def choose_workers(workers: int | Literal["auto"], *, processes: int = 1) -> int:
    """Return the number of decoding processes of each training process.

    ``auto`` is one per core that this process may use, at most 8, divided among the ``processes``
    of this machine, and at least 1.
    """
    if workers != "auto":
        return workers
    return max(1, min(8, count_cores() // processes))


def forward_batch_size(device: torch.device) -> int:
    """Give the images of one forward pass without gradients.

    A CPU is no faster with more of them, and each takes 3 MB of activations and more.
    """
    return 16 if device.type == "cpu" else 64


def count_cores() -> int:
    """Count the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1
