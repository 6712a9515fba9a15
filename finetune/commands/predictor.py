"""What ``predict`` answers with: a bundle or an exported file, in one process or in several."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from finetune.errors import ConfigError
from finetune.exports.bundle import Model, load_model, sha256_of
from finetune.exports.description import Description
from finetune.exports.exported import is_exported, load_exported
from finetune.models.answers import to_probabilities
from finetune.models.backbones import describe_backbone
from finetune.prediction.decision import Decision
from finetune.prediction.pool import Predictor, predict_in_processes
from finetune.prediction.predict import Outputs, Prediction, predict_images
from finetune.prediction.views import Augment, average_views
from finetune.training.hardware import choose_workers, count_cores, forward_batch_size

_LARGE_BATCH = 64
"""Of images below 112 pixels, on a CPU: 64 instead of 16 took a fifth off all but the network."""


@dataclass(frozen=True)
class Answering:
    """A model, ready to answer.

    Attributes:
        description: what the model says about itself.
        identity: a SHA-256 that a model with other weights or another calibration does not have.
        num_features: width of its features; 0 where it gives none.
        answer: for `finetune.prediction.predict.predict_images`.
        resize: the same.
    """

    description: Description
    identity: str
    num_features: int
    answer: Callable[[Tensor], Outputs]
    resize: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Work:
    """What each process is told; plain values, for it may be another process.

    Attributes:
        run: a folder with a bundle, or an exported file.
        trust: run an exported file that can carry code.
        augment: views of each image.
        features: give features too.
        threshold: see `finetune.prediction.decision`.
        abstain: the same.
        sets: give prediction sets too.
        batch_size: images of one forward pass.
        workers: decoding processes of each process.
        processes: that each run the model.
    """

    run: Path
    trust: bool
    augment: Augment
    features: bool
    threshold: float | None
    abstain: float | None
    sets: bool
    batch_size: int
    workers: int
    processes: int


def open_answering(run: Path, *, trust: bool, augment: Augment, features: bool) -> Answering:
    """Load a bundle, or open an exported file.

    An exported file gets the decoded images as they are, and does the rest itself.

    Raises:
        ConfigError: views or features are asked of an exported file.
        ModelError: there is no model, or it cannot be used.
    """
    if not is_exported(run):
        model = load_model(run)
        return Answering(
            model.description,
            _identify(model.description),
            describe_backbone(model.classifier.backbone).num_features,
            partial(_ask_bundle, model, augment, features),
            model.preprocess.resize,
        )
    for key, value, is_off in (
        ("augment", augment, augment == "none"),
        ("output_features", "a file", not features),
    ):
        if not is_off:
            raise ConfigError(
                f"{key}: got {value}, but {run} is an exported file, which takes whole images and "
                "gives probabilities alone. Give the run directory or the bundle: run=FOLDER."
            )
    exported = load_exported(run, trust=trust)
    return Answering(exported.description, sha256_of(run), 0, exported.probabilities, _as_it_is)


def _identify(description: Description) -> str:
    """Hash what the answers of a bundle depend on, and may be written anew."""
    values = description.model_dump(include={"weights_sha256", "temperature", "sets"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def choose_abstain(
    abstain: float | Literal["auto"] | None,
    description: Description,
    *,
    threshold: float | None,
    augment: Augment,
) -> float | None:
    """Give the probability below which an answer is marked; None for no abstention.

    The model's own was found without a threshold and on one view of each image. A threshold gives
    answers that are improbable on purpose, and the mean of several views is less extreme than one:
    with either, ``auto`` marks none.

    Args:
        abstain: as asked.
        description: of the model.
        threshold: as asked.
        augment: as asked.
    """
    if abstain != "auto":
        return abstain
    return description.abstain_below if threshold is None and augment == "none" else None


def check_sets(run: Path, description: Description, augment: Augment) -> None:
    """Refuse prediction sets that a model does not have, or whose coverage would not hold.

    Raises:
        ConfigError: says what to do.
    """
    if description.task == "multilabel":
        raise ConfigError(
            f"sets: got true, but {run} gives any number of labels to an image; prediction sets "
            "are for one class per image. Use sets=false: the columns p_<class> have the "
            "probability of each label."
        )
    if description.sets is None:
        raise ConfigError(
            f"sets: got true, but {run} has no prediction sets: it was trained with evidence=none, "
            "on too few validation images, or by an older finetune. Train it again with "
            "evidence=full, or use sets=false."
        )
    if augment != "none":
        raise ConfigError(
            f"sets: got true with augment={augment}, but the coverage was found on one view of "
            "each image. Use augment=none, or sets=false."
        )


def choose_batch_size(run: Path, image_size_px: int) -> int:
    """Give the images of one forward pass for ``batch_size=auto``.

    On a CPU, small images come in larger batches: their network is done before a batch of few has
    paid for its way from one process to another. An exported file gets whole images, of which
    several at once could fill the memory.

    Args:
        run: a folder with a bundle, or an exported file.
        image_size_px: side of what the network sees.
    """
    if is_exported(run):
        return 1
    usual = forward_batch_size(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return max(usual, min(_LARGE_BATCH, usual * 224**2 // image_size_px**2))


def choose_processes(run: Path) -> int:
    """Give the processes for ``processes=auto``: one for each GPU; exported files run in one."""
    if is_exported(run) or not torch.cuda.is_available():
        return 1
    return max(1, torch.cuda.device_count())


def workers_of_each(workers: int | str, work_items: int | None, processes: int) -> int:
    """Give the decoding processes of each process; no more than it has batches.

    Args:
        workers: as asked, or ``auto``.
        work_items: batches in all; None where nobody knows.
        processes: that share them.
    """
    chosen = choose_workers("auto" if isinstance(workers, str) else workers, processes=processes)
    return chosen if work_items is None else min(chosen, -(-work_items // processes))


def predict_paths(
    answering: Answering, work: Work, paths: Iterable[Path]
) -> Generator[Prediction, None, None]:
    """Predict in this process with an open model, or in several that open their own.

    Raises:
        ConfigError: at once, if the threshold does not fit the model.
    """
    description = answering.description
    Decision(tuple(description.class_names), description.task, work.threshold, work.abstain)
    if work.processes == 1:
        return _predictor(answering, work)(paths)
    return predict_in_processes(
        paths,
        open_predictor=partial(open_predictor, work),
        processes=work.processes,
        batch_size=work.batch_size,
        ahead=2 * work.workers + 2,
        threads=max(1, count_cores() // work.processes),
    )


def open_predictor(work: Work, number: int) -> Predictor:
    """Open the model in a process of its own, on a GPU of its own where there are several."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    answering = open_answering(
        work.run, trust=work.trust, augment=work.augment, features=work.features
    )
    return _predictor(answering, work)


def _predictor(answering: Answering, work: Work) -> Predictor:
    description = answering.description
    return partial(
        predict_images,
        model=answering.answer,
        preprocess_resize=answering.resize,
        class_names=description.class_names,
        task=description.task,
        batch_size=work.batch_size,
        workers=work.workers,
        max_megapixels=description.max_megapixels,
        threshold=work.threshold,
        abstain=work.abstain,
        sets=description.sets.read if work.sets and description.sets else None,
    )


def _ask_bundle(model: Model, augment: Augment, features: bool, resized: Tensor) -> Outputs:
    if not features:
        (probabilities,) = average_views(
            lambda view: (model.probabilities(view),), resized, augment
        )
        return probabilities
    probabilities, pooled = average_views(partial(_both, model), resized, augment)
    return probabilities, pooled


def _both(model: Model, resized: Tensor) -> tuple[Tensor, Tensor]:
    """Give probabilities and features by one pass through the backbone."""
    images = model.preprocess.normalise(resized).to(model.device)
    pooled = model.classifier.features(images.contiguous(memory_format=torch.channels_last))
    description = model.description
    logits = model.classifier.head(pooled)
    probabilities = to_probabilities(logits, description.task, description.temperature)
    return probabilities.cpu(), pooled.float().cpu()


def _as_it_is(image: Tensor) -> Tensor:
    return image[None]
