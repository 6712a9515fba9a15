"""How long the evidence takes for many images: figures with intervals, curves, the page.

    python benchmarks/evidence.py [--images 10000] [--classes 2 10 100]

The answers of the network are made up: what is timed begins where the forward passes end, and has
no pictures. Each number of classes runs in a process of its own, for its peak of memory.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from finetune.commands.evidence import calibrate_bundle, measure_answers
from finetune.commands.measure import Answers
from finetune.commands.report import Story, worries_of, write_story
from finetune.config.evidence import EvidenceConfig
from finetune.data.discover import Sample
from finetune.data.preprocess import Preprocess
from finetune.exports.bundle import load_model, save_bundle
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.run import RunDirectory

CONFIG = EvidenceConfig(
    calibrate=True,
    coverage=0.95,
    max_error="auto",
    min_sensitivity=0.95,
    min_specificity=0.95,
    resamples=1000,
    pictures=0,
    report=True,
    gain=False,
)


def made_up_answers(images: int, classes: int) -> Answers:
    """Draw labels from a network's probabilities that is a little too sure."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, classes, generator=generator)
    targets = torch.multinomial((logits / 1.5).softmax(1), 1, generator=generator).squeeze(1)
    samples = tuple(
        Sample(f"{index:06}.jpg", (f"class {target}",), "val")
        for index, target in enumerate(targets.tolist())
    )
    return Answers(Path(), samples, targets, logits, torch.randn(images, 512), {})


def bundle(folder: Path, classes: int) -> None:
    """Write a bundle of a small network with random weights."""
    backbone = create_backbone("nano", image_size_px=32)
    features = describe_backbone(backbone).num_features
    save_bundle(
        folder,
        classifier=Classifier(
            backbone, create_head("linear", in_features=features, num_classes=classes, dropout=0.0)
        ),
        preprocess=Preprocess(
            image_size_px=32,
            resize_mode="crop",
            crop_fraction=1.0,
            interpolation="bilinear",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        backbone_name="nano",
        head_name="linear",
        head_arguments={"dropout": 0.0},
        class_names=[f"class {index}" for index in range(classes)],
        task="multiclass",
        max_megapixels=200,
        versions={},
        command="",
    )


def measure(images: int, classes: int) -> None:
    """Time each part and print a row."""
    answers = made_up_answers(images, classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle(folder, classes)
        model = load_model(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = [time.perf_counter()]
        model, calibrated = calibrate_bundle(folder, model, answers, CONFIG, seed=0)
        times.append(time.perf_counter())
        found = measure_answers(model, answers, CONFIG, seed=0)
        times.append(time.perf_counter())
        story = Story(
            run=RunDirectory(folder),
            record={},
            model=model,
            measured={"val": found},
            title="made up",
            dataset="nothing",
            monitor="accuracy",
            samples={},
            calibrated=calibrated,
            pictures=0,
        )
        write_story(story, folder / "report.html", worries_of(story))
        times.append(time.perf_counter())
        size = (folder / "report.html").stat().st_size / 1e6
    parts = [f"{after - start:.1f}" for start, after in itertools.pairwise(times)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    total = times[-1] - times[0]
    row = [f"{images:,}", str(classes), *parts, f"{total:.1f}", f"{grown:.0f}", f"{size:.2f}"]
    print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 10, 100])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        measure(asked.images, asked.classes[0])
        return
    print("| images | classes | calibration, s | figures, s | page, s | all, s | MiB | page, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for classes in asked.classes:
        words = ["--one", "--images", str(asked.images), "--classes", str(classes)]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
