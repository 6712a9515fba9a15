"""The model bundle: ``model.json`` and ``model.safetensors``, the home of a trained model.

Loading it runs nothing that is in it: the JSON holds plain values, checked one by one; the
weights are safetensors, checked by their SHA-256; only known architectures are built.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.data.preprocess import Preprocess
from finetune.errors import DataError, FinetuneError, ModelError
from finetune.exports.description import (
    FORMAT_VERSION,
    Backbone,
    Description,
    Head,
    PredictionSets,
    check_description,
    read_description,
)
from finetune.exports.images import ImageLike, as_tensor
from finetune.exports.interface import JSON_NAME
from finetune.models.answers import SEPARATOR, Task, read_answers, to_probabilities
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.run import replacing, write_json

WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class Probabilities:
    """One image's answer.

    Attributes:
        labels: the classes given: the most probable one with ``multiclass``; with ``multilabel``
            all with a probability of at least 0.5, in class order, perhaps none.
        probability: that these are right and no others; see `finetune.models.answers`.
        probabilities: of every class, by name; with ``multiclass`` they add up to 1.
        abstained: whether the answer is so improbable that it is better left to a person; None
            where the model has no threshold for that.
        prediction_set: the classes that may be true, the most probable first; None where the
            model has no sets.
    """

    labels: tuple[str, ...]
    probability: float
    probabilities: dict[str, float]
    abstained: bool | None = None
    prediction_set: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The labels as one text, joined by ``|``; empty where none is given."""
        return SEPARATOR.join(self.labels)


class Model:
    """A trained classifier with its preprocessing and class names.

    Args:
        classifier: normalised images to logits.
        preprocess: decoded images to normalised ones.
        description: everything else.
    """

    def __init__(
        self, classifier: Classifier, preprocess: Preprocess, description: Description
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        classifier.eval().requires_grad_(False)
        self.classifier = classifier.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Resizing stays on the CPU, where the decoded images are; see `probabilities`.
        self.preprocess = preprocess
        self.description = description

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the outputs."""
        return self.description.class_names

    @torch.inference_mode()
    def probabilities(self, resized: Tensor) -> Tensor:
        """Give ``[B, C]``, float32, for resized images ``[B, 3, S, S]`` in 0..255."""
        images = self.preprocess.normalise(resized).to(self.device)
        logits = self.classifier(images.contiguous(memory_format=torch.channels_last))
        description = self.description
        return to_probabilities(logits, description.task, description.temperature).cpu()

    @torch.inference_mode()
    def features(self, resized: Tensor) -> Tensor:
        """Give ``[B, F]``, float32, what the head reads, for the same images."""
        images = self.preprocess.normalise(resized).to(self.device)
        found = self.classifier.backbone(images.contiguous(memory_format=torch.channels_last))
        features: Tensor = found.float().cpu()
        return features

    def predict(self, images: Sequence[ImageLike], *, batch_size: int = 32) -> list[Probabilities]:
        """Label images, each decoded and resized as in validation.

        Args:
            images: paths; PIL images; uint8 arrays ``[H, W, 3]``; uint8 tensors ``[3, H, W]``.
            batch_size: images of one forward pass, >= 1.

        Raises:
            DataError: an image cannot be read, or has another shape or type.
        """
        if isinstance(images, str | os.PathLike | np.ndarray | PIL.Image.Image | Tensor):
            raise DataError(f"predict: got {type(images).__name__}, expected a list of images.")
        answers: list[Probabilities] = []
        for start in range(0, len(images), batch_size):
            batch = [self._resized(image) for image in images[start : start + batch_size]]
            answers += self._read(self.probabilities(torch.cat(batch)))
        return answers

    def _read(self, numbers: Tensor) -> list[Probabilities]:
        names, description = self.class_names, self.description
        below = description.abstain_below
        sets = description.sets.read(numbers, names) if description.sets else [None] * len(numbers)
        return [
            Probabilities(
                answer.labels,
                answer.probability,
                dict(zip(names, answer.probabilities, strict=True)),
                None if below is None else answer.probability < below,
                prediction_set,
            )
            for answer, prediction_set in zip(
                read_answers(numbers, names, description.task), sets, strict=True
            )
        ]

    def _resized(self, image: ImageLike) -> Tensor:
        return self.preprocess.resize(as_tensor(image, self.description.max_megapixels))


def save_bundle(
    folder: Path,
    *,
    classifier: Classifier,
    preprocess: Preprocess,
    backbone_name: str,
    head_name: str,
    head_arguments: Mapping[str, float | int],
    class_names: Sequence[str],
    task: Task,
    max_megapixels: float,
    versions: Mapping[str, str],
    command: str,
) -> None:
    """Write ``model.safetensors``, then ``model.json`` with its checksum, without metrics yet.

    Args:
        folder: where both go; it exists.
        classifier: the trained network.
        preprocess: as used in validation.
        backbone_name: as `finetune.models.backbones.create_backbone` takes it.
        head_name: as `finetune.models.heads.create_head` takes it.
        head_arguments: of that head, by name.
        class_names: in the order of the outputs.
        task: what the outputs mean.
        max_megapixels: larger images are refused.
        versions: of libraries, by name.
        command: how the model was trained.
    """
    weights = folder / WEIGHTS_NAME
    # Copies, because safetensors refuses tensors that share memory, as coat's blocks do.
    state = {
        name: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in classifier.state_dict().items()
    }
    with replacing(weights) as temporary:
        save_file(state, temporary)
    info = describe_backbone(classifier.backbone)
    description = Description(
        format_version=FORMAT_VERSION,
        task=task,
        class_names=list(class_names),
        backbone=Backbone(name=backbone_name, image_size_px=info.image_size_px),
        head=Head.model_validate({"name": head_name, "arguments": dict(head_arguments)}),
        preprocessing=preprocess.settings(),
        max_megapixels=max_megapixels,
        weights_sha256=sha256_of(weights),
        metrics={},
        versions=dict(versions),
        command=command,
    )
    write_json(folder / JSON_NAME, description.model_dump())


def add_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the metrics of a saved bundle, by split, into its ``model.json``."""
    _rewrite(folder, metrics=dict(metrics))


def set_evidence(
    folder: Path,
    *,
    temperature: float,
    sets: PredictionSets | None,
    abstain_below: float | None,
) -> None:
    """Write what a saved bundle was calibrated to into its ``model.json``.

    Args:
        folder: of the bundle.
        temperature: the logits are divided by it, > 0; 1 leaves them as they are.
        sets: how prediction sets are made; None for none.
        abstain_below: less probable answers are better left to a person, in (0, 1]; None for none.

    Raises:
        ModelError: a value lies outside its range, or ``model.json`` cannot be read; it stays as
            it was.
    """
    # As plain values, which are checked; an instance would be taken as it is.
    values = None if sets is None else sets.model_dump()
    _rewrite(folder, temperature=temperature, sets=values, abstain_below=abstain_below)


def _rewrite(folder: Path, **changes: Any) -> None:
    path = folder / JSON_NAME
    values = {**read_description(path).model_dump(), **changes}
    write_json(path, check_description(values, str(path)).model_dump())


def load_model(path: str | os.PathLike[str]) -> Model:
    """Load a bundle: a run directory, or any folder with ``model.json`` and ``model.safetensors``.

    Raises:
        ModelError: a file is missing, damaged, of a newer format, or not what its checksum says.
    """
    folder = Path(path).expanduser()
    if not (folder / JSON_NAME).is_file():
        raise ModelError(
            f"{folder} holds no {JSON_NAME}; expected a run directory whose training has ended."
        )
    description = read_description(folder / JSON_NAME)
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise ModelError(f"{weights} is missing; {JSON_NAME} is of no use without it.")
    if sha256_of(weights) != description.weights_sha256:
        raise ModelError(
            f"{weights} is not the file that {JSON_NAME} describes (its SHA-256 differs); "
            "copy both files again from where they come from."
        )
    backbone = create_backbone(
        description.backbone.name, image_size_px=description.backbone.image_size_px
    )
    try:
        classifier = Classifier(backbone, _build_head(description, backbone, weights))
        classifier.load_state_dict(load_file(weights))
        preprocess = Preprocess(**description.preprocessing)
    except (
        ArithmeticError,
        RuntimeError,
        TypeError,
        ValueError,
        SafetensorError,
        FinetuneError,
    ) as error:
        raise ModelError(f"{folder}: the bundle does not fit together: {error}") from None
    return Model(classifier, preprocess, description)


def _build_head(description: Description, backbone: nn.Module, weights: Path) -> nn.Module:
    """Build the head, if its weights are as large as the description says.

    They are compared before anything is allocated: a number in it may ask for all the memory.

    Raises:
        FinetuneError: an argument lies outside its range.
        ValueError: they are not.
    """

    def build() -> nn.Module:
        return create_head(
            description.head.name,
            in_features=describe_backbone(backbone).num_features,
            num_classes=len(description.class_names),
            **description.head.arguments,
        )

    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in build().state_dict().items()}
    with safe_open(weights, framework="pt") as file:
        for name, shape in shapes.items():
            found = file.get_slice(f"head.{name}").get_shape()
            if found != shape:
                raise ValueError(f"head.{name} has the shape {found}, expected {shape}")
    return build()


def sha256_of(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
