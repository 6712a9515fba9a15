"""PyTorch: the recipe of "Transfer Learning for Computer Vision", finetuning the whole network.

RandomResizedCrop and flip, SGD (0.001, momentum 0.9), StepLR(7, 0.1), batches of 4 with 4 workers;
the best epoch is kept.

Source: https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
"""

from pathlib import Path

import torch
from record import Record, parse
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
END = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
TRANSFORMS = {
    "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *END],
    "val": [transforms.Resize(256), transforms.CenterCrop(224), *END],
}
WORKERS = 4


def main() -> None:
    """Train and report."""
    arguments = parse(__doc__, batch_size=4)
    torch.manual_seed(arguments.seed)
    record = Record(keeps="best")
    loaders = {
        split: DataLoader(
            datasets.ImageFolder(str(arguments.folder / split), transforms.Compose(steps)),
            batch_size=arguments.batch_size,
            shuffle=True,
            num_workers=WORKERS,
        )
        for split, steps in TRANSFORMS.items()
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = models.resnet18(weights="IMAGENET1K_V1")
    model.fc = nn.Linear(model.fc.in_features, len(loaders["train"].dataset.classes))
    model = model.to(device)
    optimizer = SGD(model.parameters(), lr=0.001, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=7, gamma=0.1)
    best = Path("best.pt")
    for _ in range(arguments.epochs):
        train(model, loaders["train"], optimizer, device)
        scheduler.step()
        record.add(*validate(model, loaders["val"], device))
        if record.rows[-1]["accuracy"] == max(row["accuracy"] for row in record.rows):
            torch.save(model.state_dict(), best)
    model.load_state_dict(torch.load(best, weights_only=True))
    record.print()


def train(model: nn.Module, loader: DataLoader, optimizer: SGD, device: torch.device) -> None:
    """Run one epoch; the sums are those that the tutorial keeps."""
    model.train()
    loss_sum, right = 0.0, torch.tensor(0, device=device)
    for batch in loader:
        images, labels = (part.to(device) for part in batch)
        optimizer.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(images)
        right += (logits.argmax(1) == labels).sum()


@torch.no_grad()
def validate(
    model: nn.Module, loader: DataLoader, device: torch.device
) -> tuple[list[int], list[int]]:
    """Return true and predicted classes."""
    model.eval()
    true: list[int] = []
    predicted: list[int] = []
    for images, labels in loader:
        predicted += model(images.to(device)).argmax(1).tolist()
        true += labels.tolist()
    return true, predicted


if __name__ == "__main__":
    main()
