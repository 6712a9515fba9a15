"""Random augmentation with Albumentations, from plain values, seeded per sample.

The only module that imports albumentations.
"""

import inspect
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydantic

from finetune.errors import ConfigError, did_you_mean

# Without it, importing albumentations asks the network for its newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations
from albumentations.augmentations.crops.transforms import CropSizeError

SIZE_PLACEHOLDER = "image_size_px"

_ERASING = {"name": "Erasing", "scale": (0.02, 0.33), "ratio": (0.3, 3.3), "fill": "random"}

# One after the other: smaller than any crop, wide, tall.
_TRIAL_SHAPES = ((8, 11, 3), (300, 500, 3), (400, 200, 3))
_TRIAL_SEEDS = range(4)
_SOME_SIZE_PX = 64

# What a transform raises when it cannot work with its arguments or with an image alone.
_TRANSFORM_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    CropSizeError,
    cv2.error,
)


class Augmentation:
    """Augment one image at a time; the result depends on the image and the seed alone.

    Not safe to share between threads; a copy per process is (it can be pickled).

    Args:
        transforms: in the order in which they run; each is ``{"name": "HorizontalFlip", "p": 0.5,
            ...}`` with the name and the arguments of an Albumentations transform. ``OneOf`` and
            its like hold a nested list under ``transforms``. An argument (or an item of one)
            ``"image_size_px"`` stands for that number.
        image_size_px: side of the square that the last transform must leave, >= 1.
        random_erasing: probability, in 0..1, that after all transforms a rectangle of 2 to 30 % of
            the image, 0.3 to 3.3 times as wide as high, is filled with noise (Zhong et al. 2020).

    Raises:
        ConfigError: a transform or an argument is unknown or out of range, a transform fails on
            a trial image, or the result is not ``[image_size_px, image_size_px, 3]`` uint8.
    """

    def __init__(
        self,
        transforms: Sequence[Mapping[str, Any]],
        image_size_px: int,
        random_erasing: float = 0.0,
    ) -> None:
        self.image_size_px = image_size_px
        built = _build_all(transforms, image_size_px, "transforms")
        if random_erasing:
            built.append(_build({**_ERASING, "p": random_erasing}, image_size_px, "random_erasing"))
        self._compose = albumentations.Compose(built)
        self._try_out()

    def __call__(self, image: npt.NDArray[np.uint8], *, seed: int) -> npt.NDArray[np.uint8]:
        """Augment one image.

        Args:
            image: ``[H, W, 3]`` RGB, not changed.
            seed: >= 0; make it from the run's seed, the epoch and the sample's index.

        Returns:
            ``[image_size_px, image_size_px, 3]`` RGB.

        Raises:
            ConfigError: the transforms left another size or type.
        """
        # set_random_seed() would give every transform its own generator of the same seed: two
        # flips with p=0.5 would then always happen together.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
        augmented: npt.NDArray[np.uint8] = self._compose(image=image)["image"]
        self._check_result(augmented)
        return augmented

    def _try_out(self) -> None:
        for shape in _TRIAL_SHAPES:
            image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            for seed in _TRIAL_SEEDS:
                try:
                    self(image, seed=seed)
                except _TRANSFORM_ERRORS as error:
                    raise ConfigError(
                        f"transforms: failed on a trial image of {shape[1]} x {shape[0]} pixels: "
                        f"{_one_line(error)}. Expected transforms that need an RGB image of any "
                        "size and nothing else."
                    ) from error

    def _check_result(self, image: object) -> None:
        size = self.image_size_px
        if (
            isinstance(image, np.ndarray)
            and image.shape == (size, size, 3)
            and image.dtype == np.uint8
        ):
            return
        got = (
            f"{list(image.shape)} {image.dtype}"
            if isinstance(image, np.ndarray)
            else type(image).__name__
        )
        raise ConfigError(
            f"transforms: the result is {got}, expected [{size}, {size}, 3] uint8. End with a "
            "transform that sets the size, such as {name: RandomResizedCrop, size: "
            f"[{SIZE_PLACEHOLDER}, {SIZE_PLACEHOLDER}]}}, and leave out Normalize and ToTensorV2: "
            "the model normalises by itself."
        )


def use_one_thread(worker: int) -> None:
    """Keep OpenCV in this process to one thread: the workers are the parallel ones.

    Args:
        worker: its number, as ``DataLoader`` gives it to ``worker_init_fn``.
    """
    del worker
    cv2.setNumThreads(0)


def check_transforms(transforms: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a transform that `Augmentation` does not know, before the image size is.

    Raises:
        ConfigError: a transform or an argument is unknown or out of range.
    """
    _build_all(transforms, _SOME_SIZE_PX, "transforms")


def _build_all(specs: object, image_size_px: int, where: str) -> list[Any]:
    if not isinstance(specs, Sequence) or isinstance(specs, str) or not specs:
        raise ConfigError(f"{where}: got {specs!r}, expected a list of at least one transform.")
    return [
        _build(spec, image_size_px, where=f"{where}[{index}]") for index, spec in enumerate(specs)
    ]


def _build(spec: Any, image_size_px: int, where: str) -> Any:
    """Make one Albumentations transform, with those nested in it, of plain values."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ConfigError(
            f"{where}: got {spec!r}, expected a mapping with a name, such as "
            "{name: HorizontalFlip, p: 0.5}."
        )
    name = spec["name"]
    known = _known_transforms()
    if name not in known:
        raise ConfigError(
            f"{where}.name: got `{name}`, expected a transform of Albumentations "
            f"{albumentations.__version__}.{did_you_mean(name, known)}"
        )
    where = f"{where} ({name})"
    accepted = [
        key for key in inspect.signature(known[name]).parameters if key not in ("strict", "seed")
    ]
    arguments = {key: value for key, value in spec.items() if key != "name"}
    for key in arguments:
        if key not in accepted:
            raise ConfigError(
                f"{where}: got argument `{key}`, expected some of {', '.join(accepted)}."
                f"{did_you_mean(key, accepted)}"
            )
    if issubclass(known[name], albumentations.BaseCompose):
        nested = _build_all(arguments.pop("transforms", None), image_size_px, f"{where}.transforms")
        return _construct(known[name], {**arguments, "transforms": nested}, where)
    return _construct(known[name], _fill_in(arguments, image_size_px), where)


def _construct(transform: type[Any], arguments: Any, where: str) -> Any:
    try:
        with warnings.catch_warnings():
            # Some bad values only warn, and are then replaced by the default.
            warnings.simplefilter("error", UserWarning)
            return transform(**arguments)
    except (*_TRANSFORM_ERRORS, UserWarning) as error:
        raise ConfigError(f"{where}: {_one_line(error)}.") from error


def _fill_in(value: Any, image_size_px: int) -> Any:
    """Replace the placeholder by the number, also inside lists and mappings."""
    if isinstance(value, str):
        return image_size_px if value == SIZE_PLACEHOLDER else value
    if isinstance(value, Mapping):
        return {key: _fill_in(item, image_size_px) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill_in(item, image_size_px) for item in value]
    return value


def _known_transforms() -> dict[str, type[Any]]:
    """Name every transform and composition that Albumentations itself offers."""
    bases = (albumentations.BasicTransform, albumentations.BaseCompose)
    return {
        name: value
        for name, value in vars(albumentations).items()
        if isinstance(value, type) and issubclass(value, bases)
    }


def _one_line(error: BaseException) -> str:
    """Bring an error's several lines onto one; of pydantic's, only what the user can act on."""
    if isinstance(error.__cause__, pydantic.ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: got {detail['input']!r}, {detail['msg']}"
            for detail in error.__cause__.errors()
        )
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
