"""What bfloat16 and channels_last are worth on this machine: images a second, one training step.

    .venv/bin/python benchmarks/precision.py [backbone] [image_size_px] [batch_size]

All four variants run in turn, again and again, so that a busy machine slows all alike; the fastest
round of each counts. The first row is what peers do by default, and the ratio is to it.
"""

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from torch import Tensor, nn

from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head

ROUNDS = 6
VARIANTS = {
    "float32, contiguous": (False, torch.contiguous_format),
    "float32, channels_last": (False, torch.channels_last),
    "bfloat16, contiguous": (True, torch.contiguous_format),
    "bfloat16, channels_last": (True, torch.channels_last),
}


def make(
    backbone: str, size_px: int, batch: int, layout: torch.memory_format
) -> Callable[..., None]:
    """Return one step on random images, training or not, in bfloat16 or not."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    body = create_backbone(backbone, image_size_px=size_px)
    head = create_head("linear", in_features=describe_backbone(body).num_features, num_classes=2)
    network = Classifier(body, head).to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    images = torch.randn(batch, 3, size_px, size_px, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, 2, (batch,), device=device)

    def forward(is_bfloat16: bool) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16):
            logits: Tensor = network(images)
        return logits

    def step(*, is_bfloat16: bool, trains: bool) -> None:
        network.train(trains)
        if trains:
            nn.functional.cross_entropy(forward(is_bfloat16).float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            with torch.inference_mode():
                forward(is_bfloat16)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main(backbone: str = "resnet18", size_px: str = "224", batch: str = "32") -> None:
    """Print the table."""
    steps = {
        name: make(backbone, int(size_px), int(batch), layout)
        for name, (_, layout) in VARIANTS.items()
    }
    fastest = {(name, trains): float("inf") for name in VARIANTS for trains in (True, False)}
    for _ in range(ROUNDS):
        for name, trains in fastest:
            start = time.perf_counter()
            steps[name](is_bfloat16=VARIANTS[name][0], trains=trains)
            taken = time.perf_counter() - start
            fastest[name, trains] = min(fastest[name, trains], taken)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    print(f"{backbone}, {size_px} px, batch {batch}, {device}, {torch.get_num_threads()} threads\n")
    print("| variant | train, images/s | ratio | inference, images/s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    first = next(iter(VARIANTS))
    for name in VARIANTS:
        cells = []
        for trains in (True, False):
            rate = int(batch) / fastest[name, trains]
            cells += [f"{rate:.0f}", f"{fastest[first, trains] / fastest[name, trains]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
