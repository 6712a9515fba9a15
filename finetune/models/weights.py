"""Weights of a backbone from a file: read without running anything in it, and fitted in full.

What does not fit is an error, never a warning: a backbone that is half random trains, and
nobody sees why it is bad.
"""

import argparse
import contextlib
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.errors import ModelError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_HEADS = ("fc.", "classifier.", "head.", "head_dist.", "AuxLogits.")
_CONVERTER_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_NUM_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file, without ever running code that the file holds.

    A dict that lies under `state_dict`, `model_state_dict` or `model` is unwrapped; floating
    point numbers of any width become float32.

    Args:
        path: `.safetensors`, or a `torch.save` file (`.pth`, `.pt`, `.ckpt`, `.bin`).

    Raises:
        ModelError: there is no such file, it is empty, damaged, of another kind, holds Python
            objects other than tensors, or a value in it is not finite.
    """
    weights = _read(path, outline=False)
    not_finite = [k for k, v in weights.items() if v.is_floating_point() and not _is_finite(v)]
    if not_finite:
        raise ModelError(
            f"model.weights: {path} has NaN or infinity in {_show(not_finite)}; "
            "the training that wrote it diverged. Use an earlier checkpoint."
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}


def _read(path: Path, *, outline: bool) -> dict[str, Tensor]:
    """Read the tensors of a file by name; with ``outline`` their shapes alone, on torch's `meta`.

    Raises:
        ModelError: as `read_weights`, but for values.
    """
    _check_file(path)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    loaded: Any = read(path, outline=outline)
    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in _WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    weights = (
        {
            key: value
            for key, value in loaded.items()
            if isinstance(key, str) and isinstance(value, Tensor)
        }
        if isinstance(loaded, Mapping)
        else {}
    )
    if not weights:
        found = f"keys {_show([str(k) for k in loaded])}" if isinstance(loaded, Mapping) else ""
        raise ModelError(
            f"model.weights: {path} holds no weights: got {found or type(loaded).__name__}, "
            f"expected tensors by name, at the top or under {', '.join(_WRAPPERS)}."
        )
    return weights


def load_weights(
    backbone: nn.Module,
    path: Path,
    *,
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> None:
    """Fill every parameter and buffer of ``backbone`` from a file, in place.

    The file may be of a whole classifier: its head is not used. Names may carry the prefixes
    that DataParallel, torch.compile and Lightning modules add.

    Args:
        backbone: as from `finetune.models.backbones.create_backbone`.
        path: see `read_weights`.
        convert: brings other layouts of this architecture (torchvision's, the authors') to
            timm's; applied after the prefixes are gone.

    Raises:
        ModelError: the file cannot be read, or does not fit; the backbone is then unchanged.
    """
    own = backbone.state_dict()
    given = _strip_prefixes(read_weights(path), own)
    if convert is not None:
        # A converter trips over keys that it does not know; the report below names them.
        with contextlib.suppress(*_CONVERTER_ERRORS):
            given = dict(convert(given, backbone))
    backbone.load_state_dict(own | _fitting(path, own, given))


def check_weights(
    backbone: nn.Module,
    path: Path,
    *,
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> None:
    """Refuse a file that `load_weights` would refuse, by names and shapes: no value is read.

    What only values show passes: NaN, damage behind the header, and a layout that ``convert``
    cannot bring to timm's without them.

    Args:
        backbone: on any device; `meta` is enough.
        path: see `read_weights`.
        convert: see `load_weights`.

    Raises:
        ModelError: the file cannot be read, or does not fit.
    """
    own = backbone.state_dict()
    given = _strip_prefixes(_read(path, outline=True), own)
    if convert is not None:
        try:
            given = dict(convert(given, backbone))
        except RuntimeError:  # what torch raises where it has a shape and needs a value
            return
        except _CONVERTER_ERRORS:
            pass
    _fitting(path, own, given)


def _fitting(
    path: Path, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Leave the head out; whatever else is too much, too little or of another shape is refused."""
    fitting = {k: v for k, v in given.items() if k in own or not k.startswith(_HEADS)}
    problems = _mismatches(own, fitting)
    if problems:
        raise ModelError(
            f"model.weights: {path} does not fit this backbone.\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nChoose the `model` that the file was made with."
        )
    return fitting


def _check_file(path: Path) -> None:
    if "://" in str(path) or str(path).startswith(("http:/", "https:/", "s3:/", "hf:/")):
        raise ModelError(
            f"model.weights: got the URL {path}, expected a file. Download it first, check "
            "where it comes from, and give its path."
        )
    if path.is_dir():
        raise ModelError(f"model.weights: {path} is a folder, expected a file in it.")
    if not path.is_file():
        raise ModelError(f"model.weights: there is no file {path}.")
    if path.suffix not in SUFFIXES:
        raise ModelError(f"model.weights: got {path}, expected a name in {', '.join(SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise ModelError(f"model.weights: {path} is empty.")


def _read_safetensors(path: Path, *, outline: bool) -> dict[str, Tensor]:
    try:
        if not outline:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            return {name: _outline(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"model.weights: {path} is damaged or no safetensors file ({_first_line(error)}). "
            "Copy or download it again."
        ) from error


def _outline(part: Any) -> Tensor:
    """Make a tensor without values of a part of a safetensors file."""
    is_floating = str(part.get_dtype()).startswith(("F", "BF"))
    dtype = torch.float32 if is_floating else torch.int64
    return torch.empty(part.get_shape(), dtype=dtype, device="meta")


def _read_torch(path: Path, *, outline: bool) -> Any:
    try:
        # timm's training checkpoints hold their command line as a Namespace: plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Explicit: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD overrides torch's default.
            return torch.load(path, map_location="meta" if outline else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _damaged(path, error) from error
        raise ModelError(
            f"model.weights: {path} holds a Python object, `{refused[1]}`, and loading those can "
            "run code, so it was refused. Save the bare weights where the file comes from: "
            "`safetensors.torch.save_file(model.state_dict(), FILE)`."
        ) from error
    except Exception as error:
        # A damaged pickle can raise any exception.
        if "TorchScript" in str(error):
            raise ModelError(
                f"model.weights: {path} is a TorchScript program, expected a state dict; "
                "running it would run code from the file. Save the weights of its model instead."
            ) from error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"model.weights: {path} is damaged or no torch file ({_first_line(error)}). "
        "Copy or download it again."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())


def _strip_prefixes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take wrappers' prefixes off; in a file that names its `backbone.`, leave all else out."""
    bare: dict[str, Tensor] = {}
    in_backbone: dict[str, Tensor] = {}
    for full_name, value in weights.items():
        name = full_name
        target = bare
        while name not in own and name.startswith(_PREFIXES):
            prefix, name = name.split(".", maxsplit=1)
            target = in_backbone if prefix == "backbone" else target
        target[name] = value
    return in_backbone or bare


def _mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    # Files older than torch 0.4.1 lack this counter, and a fixed momentum never reads it.
    missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in own]
    wrong = [
        f"{k} (got {_describe(given[k])}, expected {_describe(own[k])})"
        for k in own
        if k in given and _describe(given[k]) != _describe(own[k])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    return [f"{len(keys)} {kind}: {_show(keys)}" for kind, keys in kinds.items() if keys]


def _describe(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else "integer "
    return f"{kind}{list(tensor.shape)}"


def _show(names: Sequence[str]) -> str:
    more = len(names) - _NUM_SHOWN
    return ", ".join(names[:_NUM_SHOWN]) + (f" and {more} more" if more > 0 else "")
