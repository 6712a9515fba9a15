"""timm: the loop of its ``train.py``, which the wheel lacks, of the same components and defaults.

That is ``train.py --model resnet18 --pretrained --batch-size 32 --amp --amp-dtype bfloat16
--channels-last``: SGD with momentum 0.9 at 0.1 per 256 images, cosine, label smoothing 0.1, colour
jitter 0.4, 4 workers; the best epoch is kept. One epoch of warm-up, where its default of 5 would
take the whole training. Without ``--amp`` where a CPU lacks bfloat16: emulated, it takes five times
as long as float32.

Source: https://github.com/huggingface/pytorch-image-models/blob/main/train.py
"""

from pathlib import Path

import timm
import torch
from record import Record, parse
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, random_seed
from torch import nn
from torch.utils.data import DataLoader

RATE, RATE_BATCH_SIZE = 0.1, 256
MOMENTUM, WEIGHT_DECAY, SMOOTHING, COLOR_JITTER = 0.9, 2e-5, 0.1, 0.4
WORKERS = 4
HAS_BFLOAT16 = (
    torch.cuda.is_available()
    or torch.cpu._is_avx512_bf16_supported()
    or torch.cpu._is_amx_tile_supported()
)


def main() -> None:
    """Train and report."""
    arguments = parse(__doc__)
    record = Record(keeps="best")
    random_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    datasets = {
        split: create_dataset("", root=str(arguments.folder), split=split)
        for split in ("train", "val")
    }
    classes = len(datasets["train"].reader.class_to_idx)
    file = {"file": str(arguments.weights / "model.safetensors")}
    model = timm.create_model(
        "resnet18.tv_in1k", pretrained=True, pretrained_cfg_overlay=file, num_classes=classes
    ).to(device, memory_format=torch.channels_last)
    data = resolve_data_config(model=model)
    loaders = {
        split: create_loader(
            dataset,
            batch_size=arguments.batch_size,
            is_training=split == "train",
            num_workers=WORKERS,
            device=device,
            use_prefetcher=device.type == "cuda",
            color_jitter=COLOR_JITTER,
            **{**data, "interpolation": "random" if split == "train" else data["interpolation"]},
        )
        for split, dataset in datasets.items()
    }
    optimizer = create_optimizer_v2(
        model,
        opt="sgd",
        lr=RATE * arguments.batch_size / RATE_BATCH_SIZE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=arguments.epochs, warmup_epochs=1, warmup_lr=1e-5
    )
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=Path.cwd(), recovery_dir=Path.cwd())
    for epoch in range(epochs):
        train(model, loaders["train"], optimizer, device)
        record.add(*validate(model, loaders["val"], device))
        saver.save_checkpoint(epoch, metric=record.rows[-1]["accuracy"])
        scheduler.step(epoch + 1)
    record.print()


def train(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Run one epoch."""
    model.train()
    loss_of = LabelSmoothingCrossEntropy(SMOOTHING)
    for batch in loader:
        images, labels = (part.to(device) for part in batch)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=HAS_BFLOAT16):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def validate(
    model: nn.Module, loader: DataLoader, device: torch.device
) -> tuple[list[int], list[int]]:
    """Return true and predicted classes."""
    model.eval()
    true: list[int] = []
    predicted: list[int] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=HAS_BFLOAT16):
        for images, labels in loader:
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            predicted += model(images).argmax(1).tolist()
            true += labels.tolist()
    return true, predicted


if __name__ == "__main__":
    main()
