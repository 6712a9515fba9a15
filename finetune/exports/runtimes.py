"""Every exported file, opened with its own runtime alone: pixels in, numbers out.

Imports nothing large: a file of ONNX is opened without torch.
"""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError, FinetuneError, ModelError
from finetune.exports.interface import (
    INPUT,
    JSON_NAME,
    OUTPUT,
    PROGRAMS,
    SUFFIXES,
    Answer,
    Numbers,
    Pixels,
)


def open_file(path: Path, *, trust: bool) -> tuple[Answer, dict[str, Any]]:
    """Open an exported file by its suffix.

    Args:
        path: ``.ts``, ``.pt2``, ``.onnx`` or ``.safetensors``.
        trust: run a format that can carry code.

    Returns:
        What answers, and what the file says of itself: the values of ``model.json``.

    Raises:
        ConfigError: a package is missing.
        ModelError: there is no such file, it is damaged or none of ours, or it can carry code and
            is not trusted.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ModelError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise ModelError(f"{path}: no such file.")
    if suffix in PROGRAMS and not trust:
        raise ModelError(
            f"{path} can carry code, which runs when it is opened. If you know where it comes "
            "from: trust=true. A run directory and an ONNX file need no trust."
        )
    try:
        answer, text = _open(path, suffix)
    except FinetuneError:
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises what it likes on damage
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} cannot be opened: {reason or type(error).__name__}") from None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ModelError(f"{path} was not exported by finetune: it has no model.json inside.")
    return answer, values


def _open(path: Path, suffix: str) -> tuple[Answer, str]:
    if suffix == ".onnx":
        return _open_onnx(path)
    if suffix == ".safetensors":
        from finetune.exports.layouts import open_weights

        return open_weights(path)
    import torch

    program: Callable[[torch.Tensor], torch.Tensor]
    if suffix == ".ts":
        from finetune.exports.torchscript import load_torchscript

        program, text = load_torchscript(path)
    else:
        from finetune.exports.torch_export import load_torch_export

        program, text = load_torch_export(path)

    def answer(images: Pixels) -> Numbers:
        with torch.inference_mode():
            found: Numbers = program(torch.from_numpy(images)).float().numpy()
        return found

    return answer, text


def _open_onnx(path: Path) -> tuple[Answer, str]:
    runtime = require_package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(JSON_NAME, "")

    def answer(images: Pixels) -> Numbers:
        found: Numbers = session.run([OUTPUT], {INPUT: images})[0]
        return found

    return answer, text


def require_package(name: str) -> Any:
    """Import a package of the extra ``onnx``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs the package {name}: pip install 'finetune[onnx]'."
        ) from error
