"""Every export format of seven backbones on folders of images: passed by the gate, or refused, why.

    .venv/bin/python benchmarks/exports.py FOLDER …

Backbones have random weights whose BatchNorm statistics were gathered on the images, and a head
that was fitted to their features, so that the answers differ from image to image: what is tested
is whether files answer alike, not whether they are right. Prints Markdown for docs/exports.md.
"""

import argparse
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from report import shown_command, table
from rich.console import Console

from finetune.commands.export import Form, Gate, write_export
from finetune.data.discover import Sample, discover_folder
from finetune.data.labelled_images import LabelledImages, Resized, make_targets
from finetune.data.preprocess import Preprocess
from finetune.errors import FinetuneError
from finetune.exports.bundle import Model, load_model, save_bundle
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.training.averaging import reestimate_batchnorm
from finetune.training.features import compute_features
from finetune.training.hardware import forward_batch_size
from finetune.training.probe import fit_probe

BACKBONES = (
    "resnet18",
    "resnetv2_50",
    "densenet121",
    "efficientnet_b0",
    "vgg11",
    "inception_v3",
    "vit_tiny_patch16_224",
)
FORMS = {
    "torchscript": Form("torchscript"),
    "torch_export": Form("torch_export"),
    "onnx": Form("onnx"),
    "onnx float16": Form("onnx", precision="float16"),
    "onnx int8": Form("onnx", precision="int8"),
    "timm": Form("safetensors", layout="timm"),
    "torchvision": Form("safetensors", layout="torchvision"),
    "backbone, torchvision": Form("backbone", layout="torchvision"),
}
TRAIN, VAL = 128, 100
CPU = torch.device("cpu")


def main() -> None:
    """Export, and print a table for each folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--image-size-px", type=int, default=96)
    parser.add_argument("--only", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    arguments = parser.parse_args()
    print(f"`{shown_command()}`\n", flush=True)
    for folder in arguments.folders:
        samples, names = choose_images(folder)
        notes: list[str] = []
        rows = []
        for backbone in arguments.only:
            with tempfile.TemporaryDirectory() as place:
                model = make_model(backbone, folder, samples, names, arguments, Path(place))
                cells = [
                    try_form(model, form, folder, samples, Path(place), notes)
                    for form in arguments.forms
                ]
            rows.append([backbone, *cells])
            print(f"  {rows[-1]}", flush=True)
        print(f"\n### {folder.name}\n\n{table(['backbone', *arguments.forms], rows)}\n")
        print("\n".join(notes) + "\n", flush=True)


def choose_images(folder: Path) -> tuple[list[Sample], tuple[str, ...]]:
    """Take some images of each class to train on, and others to compare on."""
    found = discover_folder(folder)
    step = max(1, len(found.samples) // (TRAIN + VAL))
    chosen = found.samples[::step][: TRAIN + VAL]
    share = VAL / len(chosen)
    samples = [
        Sample(s.path, s.labels, "val" if int((i + 1) * share) > int(i * share) else "train")
        for i, s in enumerate(chosen)
    ]
    return samples, found.class_names


def make_model(
    name: str,
    root: Path,
    samples: list[Sample],
    names: tuple[str, ...],
    arguments: argparse.Namespace,
    place: Path,
) -> Model:
    """Build a backbone with random weights and a head that knows something of these images."""
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size_px=arguments.image_size_px)
    info = describe_backbone(backbone)
    preprocess = Preprocess(
        info.image_size_px, "crop", info.crop_fraction, info.interpolation, info.mean, info.std
    )
    train = [sample for sample in samples if sample.split == "train"]
    targets = make_targets(train, names, is_multilabel=False)
    images = LabelledImages(
        root, train, targets, transform=Resized(preprocess), seed=0, max_megapixels=200
    )

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, len(train) - 15, 16):
            pixels = torch.stack([images[(0, i)][0] for i in range(start, start + 16)])
            yield preprocess.normalise(pixels)

    reestimate_batchnorm(backbone, list(backbone.modules()), batches())
    features = compute_features(
        backbone,
        images,
        normalise=preprocess.normalise,
        device=CPU,
        dtype=torch.float32,
        batch_size=forward_batch_size(CPU),
        workers=0,
    )
    probe = fit_probe(features, targets, num_classes=len(names), task="multiclass", seed=0)
    head = create_head("linear", in_features=info.num_features, num_classes=len(names), dropout=0.0)
    head.load_state_dict({"linear.weight": probe.weight, "linear.bias": probe.bias})
    save_bundle(
        place,
        classifier=Classifier(backbone, head),
        preprocess=preprocess,
        backbone_name=name,
        head_name="linear",
        head_arguments={"dropout": 0.0},
        class_names=names,
        task="multiclass",
        max_megapixels=200,
        versions={},
        command="benchmarks/exports.py",
    )
    return load_model(place)


def try_form(
    model: Model, name: str, root: Path, samples: list[Sample], place: Path, notes: list[str]
) -> str:
    """Export once; give the largest difference, or the number of a note with the reason."""
    form = FORMS[name]
    console = Console(file=io.StringIO())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = write_export(
                model,
                place / form.file_name,
                form,
                Gate(images=VAL, is_timed=False),
                root=root,
                samples=samples,
                console=console,
            )
    except FinetuneError as error:
        reason = f"{name}, {model.description.backbone.name}: {' '.join(str(error).split())}"
        notes.append(f"{len(notes) + 1}. {reason.replace(str(root), root.name)}")
        return f"refused ({len(notes)})"
    lost = ""
    if form.precision == "int8" and verdict.accuracy_file is not None:
        lost = f", {100 * (verdict.accuracy_file - (verdict.accuracy_model or 0)):+.0f} points"
    return f"{verdict.largest_difference:.0e}{lost}"


if __name__ == "__main__":
    main()
