"""How many planted label errors are found: confident learning on out-of-fold probabilities.

    .venv/bin/python benchmarks/label_noise.py FOLDER [--weights FILE] [--option NAME=VALUE …]

Some training labels are exchanged for another class at random; a probe on features of the frozen
backbone says, for each image from the folds without it, what it shows; then the issues are
counted. Precision is the share of planted errors among as many images as were planted, taken from
the top of the list; recall is the share of planted errors anywhere in the list. A list that is
shorter has the rest wrong. Labels that were wrong from the beginning count as false alarms.

Features are kept in the user's cache, so that a second run takes seconds.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from ceiling import compose
from report import mean_and_deviation, show, table
from rich.console import Console
from torch import Tensor

from finetune.cache import find_cache
from finetune.commands.components import build_classifier, build_hardware, build_preprocess
from finetune.commands.dataset import audit_images, find_images, sets_of_copies
from finetune.config import TrainConfig
from finetune.data.audit import Audit
from finetune.data.discover import ImageFolder
from finetune.data.labelled_images import LabelledImages, Resized, make_targets
from finetune.data.units import make_units
from finetune.evaluation.label_issues import find_label_issues
from finetune.training.feature_cache import cached_features, features_key, open_feature_cache
from finetune.training.features import compute_features
from finetune.training.hardware import choose_workers, forward_batch_size
from finetune.training.probe import fit_probe, out_of_fold_probabilities

METHODS = ("confident learning", "least self-confidence", "random")
HEADINGS = ("method", "precision, %", "recall of all flagged, %", "flagged")


def main() -> None:
    """Print the table of one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="images of the train split, or all")
    add("--weights", type=Path, required=True, help="of a resnet18, safetensors")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="as for `train`")
    add("--images", type=int, help="at most so many, each class with its share; all")
    add("--noise", type=float, default=0.05, help="share of labels that are exchanged; 0.05")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    words = [f"dataset.root={arguments.folder}", "model=resnet18", "model.image_size_px=224"]
    words += arguments.option
    config = compose(*words, f"model.weights={arguments.weights}")
    folder = thin_out(find_images(config.dataset, config.task), arguments.images)
    audit = audit_images(
        config.dataset, folder, cache_folder=config.cache_folder, console=Console(quiet=True)
    )
    features, labels, groups = look_at(config, folder, audit)
    runs = [
        measure(features, labels, groups, len(folder.class_names), arguments.noise, seed)
        for seed in arguments.seeds
    ]
    planted = round(arguments.noise * len(labels))
    rows = [
        [method, *(mean_and_deviation([run[method][i] for run in runs], 1) for i in range(3))]
        for method in METHODS
    ]
    accuracy, seconds = (mean_and_deviation([run["probe"][i] for run in runs], 1) for i in range(2))
    name = "/".join(folder.root.parts[-2:]) if folder.root.name == "train" else folder.root.name
    note = (
        f"{len(labels)} images, {planted} of their labels exchanged, {len(runs)} seed(s); "
        f"± is the standard deviation. The probe on resnet18 says the true class of {accuracy} % "
        f"of the images; the regression and the search took {seconds} s."
    )
    show(f"Label noise: {name}", f"{note}\n\n{table(HEADINGS, rows)}", writes=arguments.write)


def thin_out(folder: ImageFolder, count: int | None) -> ImageFolder:
    """Keep the training images, or where no split is known all; of many, evenly spaced ones."""
    some = [sample for sample in folder.samples if sample.split in (None, "train")]
    if count is not None and count < len(some):
        some.sort(key=lambda sample: (sample.labels, sample.path))
        some = [some[place * len(some) // count] for place in range(count)]
        some.sort(key=lambda sample: sample.path)
    return replace(folder, samples=tuple(some))


def look_at(
    config: TrainConfig, folder: ImageFolder, audit: Audit
) -> tuple[Tensor, Tensor, list[int]]:
    """Give features, labels and groups of the images that can be read."""
    samples = [one for one in folder.samples if one.path not in audit.unreadable]
    classifier = build_classifier(config, num_classes=len(folder.class_names), load_weights=True)
    backbone, preprocess = classifier.backbone, build_preprocess(config, classifier)
    hardware = build_hardware(config)
    labels = make_targets(samples, folder.class_names, is_multilabel=False)
    images = LabelledImages(
        folder.root,
        samples,
        labels,
        transform=Resized(preprocess),
        seed=0,
        max_megapixels=config.dataset.max_megapixels,
    )
    key = features_key(
        backbone,
        name=config.model.backbone,
        preprocessing={**preprocess.settings(), "benchmark": "label_noise"},
        precision=hardware.precision,
    )
    features = cached_features(
        open_feature_cache(find_cache(config.cache_folder).features, key=key),
        [audit.digests.get(path) for path in images.paths],
        compute=lambda places: compute_features(
            backbone,
            images,
            normalise=preprocess.normalise,
            device=hardware.device,
            dtype=hardware.dtype,
            batch_size=forward_batch_size(hardware.device),
            workers=choose_workers(config.dataset.workers),
            indices=places,
        ),
    )
    groups = [0] * len(samples)
    for number, unit in enumerate(make_units(samples, sets_of_copies(audit), seed=config.seed)):
        for member in unit.members:
            groups[member] = number
    return features.rows, labels, groups


def measure(
    features: Tensor, labels: Tensor, groups: list[int], classes: int, noise: float, seed: int
) -> dict[str, tuple[float, ...]]:
    """Plant errors and look for them.

    Returns:
        For each method, precision and recall in percent and the images flagged; for ``probe``, its
        accuracy on the true labels in percent, and the seconds that the search took.
    """
    noisy, is_planted = plant(labels, classes, noise, seed)
    start = time.perf_counter()
    settings = {"num_classes": classes, "task": "multiclass", "seed": seed, "groups": groups}
    strength = fit_probe(features, noisy, **settings).strength
    probabilities = out_of_fold_probabilities(features, noisy, strength=strength, **settings)
    issues = find_label_issues(probabilities, noisy)
    seconds = time.perf_counter() - start
    own = probabilities.gather(1, noisy.unsqueeze(1)).squeeze(1).nan_to_num(1.0)
    chance = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    is_right = probabilities.nan_to_num(0.0).argmax(1) == labels
    found = torch.tensor([issue.index for issue in issues], dtype=torch.int64)
    # The baselines flag nothing of themselves, so they get as many as were found.
    lists = (found, own.argsort(stable=True)[: len(found)], chance[: len(found)])
    ranks = (found, own.argsort(stable=True), chance)
    count = int(is_planted.sum())
    scores = {
        method: (
            100 * float(is_planted[ranked[:count]].sum()) / count,
            100 * float(is_planted[flagged].sum()) / count,
            float(len(flagged)),
        )
        for method, ranked, flagged in zip(METHODS, ranks, lists, strict=True)
    }
    return {**scores, "probe": (100 * float(is_right.float().mean()), seconds)}


def plant(labels: Tensor, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Give some images another class, each as likely as the others; mark which."""
    generator = torch.Generator().manual_seed(1000 + seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(noise * len(labels))]
    step = torch.randint(1, classes, (len(chosen),), generator=generator)
    noisy, is_planted = labels.clone(), torch.zeros(len(labels), dtype=torch.bool)
    noisy[chosen] = (labels[chosen] + step) % classes
    is_planted[chosen] = True
    return noisy, is_planted


if __name__ == "__main__":
    main()
