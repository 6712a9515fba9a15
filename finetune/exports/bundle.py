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
import numpy.typing as npt
import PIL.Image
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.data.decode import decode_image, image_to_rgb
from finetune.data.preprocess import Preprocess
from finetune.errors import DataError, FinetuneError, ImageError, ModelError
from finetune.exports.description import (
    FORMAT_VERSION,
    Backbone,
    Description,
    Head,
    read_description,
)
from finetune.exports.interface import JSON_NAME
from finetune.models.answers import SEPARATOR, Task, read_answers, to_probabilities
from finetune.models.backbones import create_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.run import replacing, write_json

WEIGHTS_NAME = "model.safetensors"

ImageLike = str | os.PathLike[str] | npt.NDArray[np.uint8] | PIL.Image.Image | Tensor


@dataclass(frozen=True)
class Probabilities:
    """One image's answer.

    Attributes:
        labels: the classes given: the most probable one with ``multiclass``; with ``multilabel``
            all with a probability of at least 0.5, in class order, perhaps none.
        probability: that these are right and no others; see `finetune.models.answers`.
        probabilities: of every class, by name; with ``multiclass`` they add up to 1.
    """

    labels: tuple[str, ...]
    probability: float
    probabilities: dict[str, float]

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
            numbers = self.probabilities(torch.cat(batch))
            for answer in read_answers(numbers, self.class_names, self.description.task):
                named = dict(zip(self.class_names, answer.probabilities, strict=True))
                answers.append(Probabilities(answer.labels, answer.probability, named))
        return answers

    def _resized(self, image: ImageLike) -> Tensor:
        return self.preprocess.resize(_as_tensor(image, self.description.max_megapixels))


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
    description = read_description(folder / JSON_NAME)
    write_json(
        folder / JSON_NAME, description.model_copy(update={"metrics": dict(metrics)}).model_dump()
    )


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


def _as_tensor(image: ImageLike, max_megapixels: float) -> Tensor:
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape or image.dtype != torch.uint8:
            got = f"{list(image.shape)} {image.dtype}"
            raise DataError(f"predict: got a tensor {got}, expected uint8 [3, H, W].")
        return image.cpu()
    if isinstance(image, np.ndarray):
        array = image
    elif isinstance(image, PIL.Image.Image):
        # The same rules for modes, alpha and orientation as for files.
        array = image_to_rgb(image)
    else:
        try:
            array = decode_image(Path(image), max_megapixels=max_megapixels)
        except (ImageError, OSError) as error:
            raise DataError(f"{image} cannot be read: {error}") from None
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape or array.dtype != np.uint8:
        got = f"{list(array.shape)} {array.dtype}"
        raise DataError(f"predict: got an array {got}, expected uint8 [H, W, 3].")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
