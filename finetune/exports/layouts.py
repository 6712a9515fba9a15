"""Weights alone, in the names of timm or of torchvision, as safetensors.

For those who build the network themselves: a detector on our backbone, another training program.
The description travels in the file's header; nothing in it is executed.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from finetune.data.preprocess import Preprocess
from finetune.errors import ExportError, ModelError
from finetune.exports.bundle import Model
from finetune.exports.description import check_description
from finetune.exports.interface import JSON_NAME, Answer, Numbers, Pixels
from finetune.models.answers import to_probabilities
from finetune.models.backbones import NANO
from finetune.models.heads import LinearHead

Layout = Literal["timm", "torchvision"]
State = dict[str, Tensor]


def save_weights(
    model: Model, path: Path, *, layout: Layout, with_head: bool, dtype: torch.dtype
) -> None:
    """Write the weights as one safetensors file that loads strictly into another's model.

    Args:
        model: the bundle's.
        path: of the file.
        layout: whose names; those of torchvision only where its model is built alike.
        with_head: False for the backbone alone.
        dtype: that the weights are kept in.

    Raises:
        ExportError: that library has no such model, or no place for this head.
    """
    name = model.description.backbone.name
    state = {key: value.cpu() for key, value in model.classifier.backbone.state_dict().items()}
    classes = len(model.class_names) if with_head else None
    target = _create(name, model.preprocess.image_size_px, layout, classes)
    if with_head:
        state |= _head_state(model, target, layout)
    _check_strict(state, target, name, layout)
    kept = {
        key: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in state.items()
    }
    header = {
        "format": "pt",
        "layout": layout,
        "with_head": json.dumps(with_head),
        JSON_NAME: json.dumps(model.description.model_dump(), allow_nan=False),
    }
    save_file(kept, path, metadata=header)


def open_weights(path: Path) -> tuple[Answer, str]:
    """Build the model that a file of `save_weights` is for, and load it strictly.

    It answers with probabilities ``[B, C]``; of a backbone alone, with features ``[B, F]``.

    Raises:
        ModelError: the file is none of ours.
    """
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    layout = header.get("layout")
    if layout not in ("timm", "torchvision") or JSON_NAME not in header:
        raise ModelError(f"{path} was not exported by finetune: its header has no layout.")
    description = check_description(json.loads(header[JSON_NAME]), f"{JSON_NAME} in {path}")
    classes = len(description.class_names) if header.get("with_head") == "true" else None
    backbone = description.backbone
    try:
        network = _create(backbone.name, backbone.image_size_px, layout, classes)
    except ExportError as error:
        raise ModelError(f"{path}: {error}") from None
    network.load_state_dict(load_file(path))  # float16 is copied into float32
    network.eval()
    preprocess = Preprocess(**description.preprocessing)

    @torch.inference_mode()
    def answer(images: Pixels) -> Numbers:
        found = network(preprocess(torch.from_numpy(images)))
        if classes is not None:
            found = to_probabilities(found, description.task, description.temperature)
        numbers: Numbers = found.float().numpy().astype(np.float32)
        return numbers

    return answer, header[JSON_NAME]


def _create(name: str, image_size_px: int, layout: Layout, num_classes: int | None) -> nn.Module:
    """Build the other library's model, with a head of so many classes or without."""
    if layout == "timm":
        if name == NANO:
            raise ExportError("layout=timm: timm has no `nano`; use torchscript, onnx or model=….")
        # Before `create_model`, which also reads folders and the hub: `local-dir:`, `hf-hub:`.
        if not timm.is_model(name):
            raise ExportError(f"layout=timm: timm has no `{name}`.")
        # timm's contract: a model whose cfg says so takes img_size, no other does.
        cfg = get_pretrained_cfg(name)
        size: dict[str, Any] = (
            {"img_size": image_size_px} if cfg is not None and cfg.fixed_input_size else {}
        )
        model: nn.Module = timm.create_model(name, num_classes=num_classes or 0, **size)
        return model
    architecture = name.split(".")[0]
    if architecture not in torchvision.models.list_models(module=torchvision.models):
        raise ExportError(f"layout=torchvision: torchvision has no `{architecture}`; use timm.")
    options: dict[str, Any] = {"aux_logits": False} if "inception" in architecture else {}
    model = torchvision.models.get_model(
        architecture, weights=None, num_classes=num_classes or 1, **options
    )
    if num_classes is None:
        model.set_submodule(_classifier_name(model), nn.Identity())
    return model


def _classifier_name(model: nn.Module) -> str:
    """Find the last layer, which gives the classes: linear, or a convolution of one pixel."""
    kinds = (nn.Linear, nn.Conv2d)
    layers: list[str] = [name for name, part in model.named_modules() if isinstance(part, kinds)]
    return layers[-1]


def _head_state(model: Model, target: nn.Module, layout: Layout) -> State:
    head = model.classifier.head
    if not isinstance(head, LinearHead):
        raise ExportError(
            f"layout={layout}: a head of kind {model.description.head.name} has no place in it; "
            "use format=backbone, torchscript or onnx."
        )
    name = _classifier_name(target)
    state = {f"{name}.{key}": value.cpu() for key, value in head.linear.state_dict().items()}
    places = target.state_dict()
    return {
        key: value.reshape(places[key].shape)
        if key in places and places[key].numel() == value.numel()
        else value
        for key, value in state.items()
    }


def _check_strict(state: State, target: nn.Module, name: str, layout: Layout) -> None:
    """Refuse names and shapes that are not exactly those of the other library's model.

    Raises:
        ExportError: names the first that differs.
    """
    ours = {key: tuple(value.shape) for key, value in state.items()}
    theirs = {key: tuple(value.shape) for key, value in target.state_dict().items()}
    different = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if different:
        raise ExportError(
            f"layout={layout}: its `{name}` is built in another way, {len(different)} of "
            f"{len({*ours, *theirs})} names or shapes differ, such as {different[0]}; use "
            f"{'layout=timm or ' if layout != 'timm' else ''}format=torchscript."
        )
