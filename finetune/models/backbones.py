"""Backbones: images ``[B, 3, H, W]`` in, pooled features ``[B, F]`` out.

Any architecture of timm by its name, and one of our own, `nano`, for small images and for
machines without a hub: its weights lie beside this file, with a card.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, get_pretrained_cfg, model_entrypoint
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from finetune.errors import ModelError, did_you_mean
from finetune.models.weights import check_weights, load_weights

NANO = "nano"
HUB_TIMEOUT_SECONDS = 5.0
DEFAULT_IMAGE_SIZE_PX = 224
NANO_IMAGE_SIZE_PX = 32
NANO_WEIGHTS = Path(__file__).with_name("nano.safetensors")
"""Of `nano`, in half precision; made by `make pretrain`, as the card beside it says."""
DEFAULT_CROP_FRACTION = 0.875

_CONVERTER_NAMES = (
    "checkpoint_filter_fn",
    "pretrained_filter_fn",
    "_filter_fn",
    "_filter_torchvision_pretrained",
)
_Convert = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """What a backbone gives, and the images that its weights expect.

    Attributes:
        name: timm's architecture, without a tag, or `nano`.
        num_features: width F of the features that ``forward`` returns.
        image_size_px: side of the square images; 224 where timm does not say.
        crop_fraction: side of the central crop over that of the resized image, in (0, 1];
            0.875 where timm does not say.
        interpolation: of the resize; `bicubic` where timm does not say.
        mean: per channel R, G, B, of images in [0, 1]; ImageNet's where timm does not say.
        std: the same.
    """

    name: str
    num_features: int
    image_size_px: int
    crop_fraction: float
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    image_size_px: int | None = None,
) -> nn.Module:
    """Build a backbone, with random weights unless told otherwise.

    Args:
        name: `nano`, or a timm name with or without a tag (`resnet18`, `resnet18.tv_in1k`).
        pretrained: take the weights from timm's hub, or from its cache without any network;
            those of `nano` are part of this package.
        weights: take the weights from this file; see `finetune.models.weights`.
        image_size_px: side of the images to come. A transformer with a fixed grid of patches
            is built for it; any backbone is tried on one such image. None leaves the size
            of the pretrained weights.

    Raises:
        ModelError: the name is unknown, the weights are not to be had or do not fit, both
            kinds are asked for, or the backbone cannot take images of that size.
    """
    _check_sources(pretrained=pretrained, weights=weights)
    if name == NANO:
        backbone: nn.Module = _create_nano()
        weights = NANO_WEIGHTS if pretrained else weights
    else:
        backbone = _create_timm(name, pretrained=pretrained, image_size_px=image_size_px)
    if weights is not None:
        load_weights(backbone, weights, convert=_find_converter(name))
    if image_size_px is not None:
        _try_image_size(backbone, name, image_size_px)
        # describe_backbone reads it here; the weights are in, so nothing else does.
        cast(Any, backbone).pretrained_cfg["input_size"] = (3, image_size_px, image_size_px)
    return backbone


def outline_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    image_size_px: int | None = None,
) -> nn.Module:
    """Build a backbone without values, on torch's `meta` device, in a fraction of a second.

    What `create_backbone` would refuse with the same arguments is refused here, before anything
    large is read: all but what only the values of the weights show. Some backbones cannot be
    built without values, and come with random ones.

    Raises:
        ModelError: as `create_backbone`.
    """
    _check_sources(pretrained=pretrained, weights=weights)
    if pretrained:
        check_pretrained(name)
    pretrained_size_px(name)  # the name is known
    try:
        with torch.device("meta"):
            backbone = create_backbone(name, image_size_px=image_size_px)
    except Exception:  # noqa: BLE001 - whatever fails for want of a value, or shall fail again
        backbone = create_backbone(name, image_size_px=image_size_px)
    if weights is not None:
        check_weights(backbone, weights, convert=_find_converter(name))
    return backbone


def check_pretrained(name: str) -> None:
    """Refuse weights that timm has not, or whose hub cannot be reached now.

    Raises:
        ModelError: which of these, or the name is unknown.
    """
    if name != NANO:
        _find_pretrained(name, _find_cfg(name))


def describe_backbone(backbone: nn.Module) -> BackboneInfo:
    """Say what ``backbone`` gives and expects, from what timm knows of its weights.

    Args:
        backbone: from `create_backbone`.
    """
    cfg: dict[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    # num_features is the width before pooling and pre-logits layers: wrong for vgg, mobilenetv3.
    width = getattr(backbone, "head_hidden_size", None) or cast(Any, backbone).num_features
    interpolation = cfg.get("interpolation")
    return BackboneInfo(
        name=str(cfg.get("architecture") or type(backbone).__name__),
        num_features=int(width),
        image_size_px=int((cfg.get("input_size") or (3, 0, DEFAULT_IMAGE_SIZE_PX))[-1]),
        crop_fraction=float(cfg.get("crop_pct") or DEFAULT_CROP_FRACTION),
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        mean=_triple(cfg.get("mean") or IMAGENET_DEFAULT_MEAN),
        std=_triple(cfg.get("std") or IMAGENET_DEFAULT_STD),
    )


def pretrained_size_px(name: str) -> int:
    """Give the side of the images with which a backbone was pretrained, without building it.

    Raises:
        ModelError: the name is unknown.
    """
    if name == NANO:
        return NANO_IMAGE_SIZE_PX
    return int(_find_cfg(name).input_size[-1])


def _check_sources(*, pretrained: bool, weights: Path | None) -> None:
    if pretrained and weights is not None:
        raise ModelError(
            f"model.weights: got {weights} as well as model.pretrained=true. "
            "Set model.pretrained=false to use the file."
        )


def _triple(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _create_nano() -> ResNet:
    """Build a residual network of 0.9 M parameters for images of 32 to 128 px.

    A deep stem of 3x3 convolutions halves the image once, where ResNet's quarters it: at
    32 px the four stages see maps of 16, 8, 4 and 2, at 128 px of 64, 32, 16 and 8.

    Source: He et al. 2016; stem and pooled shortcuts as in ResNet-D, He et al. 2019.
    """
    backbone = ResNet(
        cast(Any, BasicBlock),  # annotated as an instance, used as a class
        layers=(1, 1, 1, 1),
        channels=(32, 64, 128, 192),
        stem_type="deep",
        stem_width=16,
        avg_down=True,
        num_classes=0,
    )
    cast(Any, backbone).maxpool = nn.Identity()
    cast(Any, backbone).pretrained_cfg = {
        "architecture": NANO,
        "input_size": (3, NANO_IMAGE_SIZE_PX, NANO_IMAGE_SIZE_PX),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }
    return backbone


def _create_timm(name: str, *, pretrained: bool, image_size_px: int | None) -> nn.Module:
    cfg = _find_cfg(name)
    overlay = _find_pretrained(name, cfg) if pretrained else {}
    # timm's contract: a model whose cfg says so takes img_size, no other does.
    size: dict[str, Any] = (
        {"img_size": image_size_px} if image_size_px and cfg.fixed_input_size else {}
    )
    try:
        return timm.create_model(
            name,
            pretrained=pretrained,
            pretrained_cfg_overlay=overlay,
            num_classes=0,
            scriptable=True,
            **size,
        )
    except Exception as error:
        # What timm and the hub's client raise differs by model, by cause and by version.
        if pretrained:
            raise _no_weights(name, f"{type(error).__name__}: {error}") from error
        raise ModelError(f"model: timm cannot build `{name}`: {error}") from error


def _find_cfg(name: str) -> PretrainedCfg:
    """Look a timm name up; a tag that timm does not know is as wrong as the name."""
    if not timm.is_model(name):
        hint = did_you_mean(name, [NANO, *timm.list_models()])
        raise ModelError(f"model: got `{name}`, expected `nano` or an architecture of timm.{hint}")
    try:
        return get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        architecture = name.split(".")[0]
        tagged = timm.list_models(f"{architecture}.*", pretrained=True)
        hint = did_you_mean(name, tagged)
        known = ", ".join(f"`{option}`" for option in tagged) or "none"
        raise ModelError(
            f"model: got `{name}`; the tags of `{architecture}` are {known}.{hint}"
        ) from error


def _find_pretrained(name: str, cfg: PretrainedCfg) -> dict[str, str]:
    """Find out, in seconds, whether timm can get the weights; return what to tell it.

    The hub's client tries six times per file, 47 s in all, before it admits that there is no
    network; so the cache is asked first, and then the hub once.
    """
    if not cfg.has_weights:
        raise _no_weights(name, "timm has none for it")
    if not cfg.hf_hub_id:
        return {}
    file = cfg.hf_hub_filename or "model.safetensors"
    # Older versions of timm unpickle other files without weights_only.
    if file.endswith(".safetensors") and not cfg.custom_load:
        repository, _, revision = cfg.hf_hub_id.partition("@")
        cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return {"file": cached}
    try:
        endpoint = constants.ENDPOINT
        huggingface_hub.get_session().head(endpoint, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:
        raise _no_weights(name, f"the hub cannot be reached ({error})") from error
    return {}


def _no_weights(name: str, reason: str) -> ModelError:
    return ModelError(
        f"model.pretrained: no weights for `{name}`: {reason}.\n"
        "Give a file with `model.weights=FILE`, or use `model=nano`, whose weights are part of "
        "this package; `model.pretrained=false` starts from random weights."
    )


def _find_converter(name: str) -> _Convert | None:
    """Find timm's own function that brings other layouts of an architecture to timm's."""
    if name == NANO:
        return None
    module = sys.modules[model_entrypoint(name).__module__]
    found = (getattr(module, function_name, None) for function_name in _CONVERTER_NAMES)
    function = next(filter(None, found), None)
    if function is None or len(inspect.signature(function).parameters) > 1:
        return cast(_Convert | None, function)
    return lambda state, _: cast(dict[str, Tensor], function(state))


@torch.inference_mode()
def _try_image_size(backbone: nn.Module, name: str, image_size_px: int) -> None:
    """Raise ModelError unless an image of this size gives features of the promised width."""
    info = describe_backbone(backbone)
    was_training = backbone.training
    backbone.eval()
    try:
        shape = tuple(backbone(torch.zeros(1, 3, image_size_px, image_size_px)).shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"model: `{name}` cannot take images of {image_size_px} px ({error}). "
            f"It was made for {info.image_size_px} px."
        ) from error
    finally:
        backbone.train(was_training)
    if shape != (1, info.num_features):
        raise ModelError(
            f"model: `{name}` gives features of shape {list(shape)} for an image, expected "
            f"[1, {info.num_features}]. It is an encoder without pooling: choose a classifier."
        )
