"""Images a second of real prediction, beside the bare model on tensors, and the memory over time.

    .venv/bin/python benchmarks/prediction.py [--images N] [--backbone NAME] [--size PX]

Small JPEGs of noise are written into a temporary folder (a thousand different ones, the others
are hard links to them). `predict_images` and the CSV writer label all of them as `finetune predict`
does; in between, the bare model answers tensors of the same batch size that lie in memory, so that
a busy machine slows both alike. The memory is that of this process and its decoding ones (PSS,
which counts what they share once).
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import PIL.Image
import torch
from report import show, table

from finetune.commands.predictor import Work, choose_batch_size, open_answering, predict_paths
from finetune.data.preprocess import Preprocess
from finetune.exports.bundle import save_bundle
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.prediction.inputs import find_inputs
from finetune.prediction.writers import open_writer
from finetune.training.hardware import choose_workers

TARGET = 0.90
DISTINCT = 1000
PER_FOLDER = 10_000
CLASSES = 10
ROWS = 10
"""Of the table, each after as many images."""
BARE_SECONDS = 3.0


def write_images(folder: Path, count: int, size_px: int) -> None:
    """Write JPEGs of coloured noise, as smooth as photographs are."""
    rng = np.random.default_rng(0)
    originals: list[Path] = []
    for index in range(count):
        path = folder / f"{index // PER_FOLDER:03d}" / f"{index:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if index < DISTINCT:
            noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = PIL.Image.fromarray(noise).resize((size_px, size_px))
            image.save(path, quality=90)
            originals.append(path)
        else:
            path.hardlink_to(originals[index % DISTINCT])


def write_bundle(folder: Path, backbone: str, size_px: int) -> None:
    """Save an untrained model, which is as fast as a trained one."""
    torch.manual_seed(0)
    body = create_backbone(backbone, image_size_px=size_px)
    info = describe_backbone(body)
    head = create_head("linear", in_features=info.num_features, num_classes=CLASSES, dropout=0.0)
    preprocess = Preprocess(
        size_px, "squash", info.crop_fraction, info.interpolation, info.mean, info.std
    )
    save_bundle(
        folder,
        classifier=Classifier(body, head),
        preprocess=preprocess,
        backbone_name=backbone,
        head_name="linear",
        head_arguments={"dropout": 0.0},
        class_names=[f"class {index}" for index in range(CLASSES)],
        task="multiclass",
        max_megapixels=200,
        versions={},
        command="",
    )


def processes() -> list[int]:
    """List this process and its children, however deep."""
    found, pending = [], [os.getpid()]
    while pending:
        pid = pending.pop()
        found.append(pid)
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            pending += map(int, tasks.read_text().split())
    return found


def memory_mb() -> tuple[float, float]:
    """Give the MB of this process, and of all together."""
    sizes = []
    for pid in processes():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes.append(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
    return sizes[0] / 1024, sum(sizes) / 1024


def bare_rate(answer: object, batches: list[torch.Tensor]) -> float:
    """Give images a second of the model alone."""
    assert callable(answer)
    count, start = 0, time.perf_counter()
    with torch.inference_mode():
        while (seconds := time.perf_counter() - start) < BARE_SECONDS:
            batch = batches[count % len(batches)]
            answer(batch)
            count += 1
    return count * len(batches[0]) / seconds


def measure(arguments: argparse.Namespace, temporary: Path) -> Iterator[list[float]]:
    """Yield, after each part: images, seconds, rate, bare rate, MB of one and of all."""
    images, bundle = temporary / "images", temporary / "bundle"
    images.mkdir()
    bundle.mkdir()
    write_images(images, arguments.images, arguments.image_px)
    write_bundle(bundle, arguments.backbone, arguments.size)
    answering = open_answering(bundle, trust=False, augment="none", features=False)
    batch_size = arguments.batch_size or choose_batch_size(bundle, arguments.size)
    work = Work(
        bundle, False, "none", False, None, None, batch_size, choose_workers("auto"), processes=1
    )
    batches = [255 * torch.rand(batch_size, 3, arguments.size, arguments.size) for _ in range(4)]
    inputs = find_inputs(str(images))
    assert inputs.count == arguments.images
    part = max(batch_size, arguments.images // ROWS)
    bare = bare_rate(answering.answer, batches)
    done, total, start = 0, 0.0, time.perf_counter()
    predictions = predict_paths(answering, work, inputs.paths)
    with open_writer(temporary / "rows.csv", answering.description.class_names) as writer:
        for done, prediction in enumerate(predictions, 1):
            writer.write(prediction)
            assert prediction.error is None
            if done % part and done != arguments.images:
                continue
            seconds = time.perf_counter() - start
            total += seconds
            memory = memory_mb()
            last, bare = bare, bare_rate(answering.answer, batches)
            yield [done, total, seconds, (last + bare) / 2, *memory]
            start = time.perf_counter()
    assert done == arguments.images


def main() -> None:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--image-px", type=int, default=64, help="side of the JPEGs")
    parser.add_argument("--size", type=int, default=64, help="side of what the model sees")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, help="as `batch_size=auto` chooses")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    rows, ratios, previous = [], [], 0
    with tempfile.TemporaryDirectory() as temporary:
        for done, total, seconds, bare, own, every in measure(arguments, Path(temporary)):
            rate = (done - previous) / seconds
            previous = int(done)
            ratios.append(rate / bare)
            rows.append(
                [
                    f"{done:,.0f}",
                    f"{total:,.1f}",
                    f"{rate:,.0f}",
                    f"{bare:,.0f}",
                    f"{rate / bare:.3f}",
                    f"{own:,.0f}",
                    f"{every:,.0f}",
                ]
            )
            print(*rows[-1], file=sys.stderr, flush=True)
    ratio = statistics.median(ratios)
    verdict = (
        f"Median ratio {ratio:.2f}, {'at least' if ratio >= TARGET else '**below**'} {TARGET:.2f}."
    )
    headings = ("images", "seconds", "images/s", "bare model", "ratio", "MB", "MB with workers")
    show(
        "Prediction",
        f"{arguments.backbone} at {arguments.size} px, {arguments.images:,} JPEGs of "
        f"{arguments.image_px} px, {torch.get_num_threads()} threads and "
        f"{choose_workers('auto')} decoding processes.\n\n{table(headings, rows)}\n\n{verdict}",
        writes=arguments.write,
    )


if __name__ == "__main__":
    main()
