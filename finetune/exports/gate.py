"""Whether an exported file answers like the model, image by image, from raw files.

Shapes: ``N`` images, ``C`` classes, ``F`` features.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.errors import DataError, ExportError, ImageError
from finetune.exports.answering import REPEATS, latencies, read_pixels
from finetune.exports.bundle import Model
from finetune.exports.interface import Answer, Numbers, Pixels
from finetune.models.answers import as_hot, decide


@dataclass(frozen=True)
class Verdict:
    """How an exported file compares with the model.

    Attributes:
        images: how many were compared.
        same_labels: on how many both give the same class, or the same labels; None of features.
        largest_difference: of any probability, in [0, 1]; of features over the largest of them.
        tolerance: what is allowed; None for anything.
        worst_image: where the largest difference is.
        accuracy_model: the model's on these images, all labels right; None of features.
        accuracy_file: the file's.
        latency_ms_model: median of an answer, by images in a batch; decoding left out.
        latency_ms_file: the same of the file; empty where neither was timed.
        megabytes: of the file.
    """

    images: int
    same_labels: int | None
    largest_difference: float
    tolerance: float | None
    worst_image: str
    accuracy_model: float | None
    accuracy_file: float | None
    latency_ms_model: Mapping[int, float]
    latency_ms_file: Mapping[int, float]
    megabytes: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_file(
    file: Path,
    model: Model,
    paths: Sequence[Path],
    targets: Tensor,
    *,
    tolerance: float | None,
    max_accuracy_drop: float,
    known: Mapping[Path, Tensor] | None = None,
    gives_features: bool = False,
    is_timed: bool = True,
) -> Verdict:
    """Ask the model here, and the file in a fresh process, about the same raw files.

    Args:
        file: exported; its suffix names its format.
        model: the bundle's.
        paths: N readable images, at least one.
        targets: their classes ``[N]``, or labels ``[N, C]``.
        tolerance: largest allowed difference; None for any.
        max_accuracy_drop: of the file below the model, in 0..1.
        known: the model's probabilities ``[C]`` of files that it has answered just now, which it
            is not asked again.
        gives_features: the file is a backbone alone.
        is_timed: measure how long an answer takes, too.

    Raises:
        DataError: an image cannot be read any more.
        ExportError: the file fails, or differs by more than is allowed; names the worst image.
    """
    ours = _ask_model(model, paths, known or {}, gives_features=gives_features)
    limit = model.description.max_megapixels
    theirs, file_seconds = _ask_file(file, paths, limit, is_timed=is_timed)
    if theirs.shape != ours.shape:
        raise ExportError(
            "The exported file does not answer like the model: its answers have the shape "
            f"{list(theirs.shape)}, expected {list(ours.shape)}."
        )
    model_seconds = []
    if is_timed:
        answer = _answer_of(model, gives_features=gives_features)
        model_seconds = latencies(answer, read_pixels(paths[0], limit))
    differences = (theirs - ours).abs().amax(1)
    if gives_features:
        differences = differences / ours.abs().max()
    # NaN is as far away as can be.
    worst = int(differences.nan_to_num(nan=torch.inf).argmax())
    scores = {} if gives_features else _scores(ours, theirs, targets, model.description.task)
    verdict = Verdict(
        images=len(paths),
        same_labels=scores.get("same"),
        largest_difference=float(differences[worst]),
        tolerance=tolerance,
        worst_image=str(paths[worst]),
        accuracy_model=scores.get("model"),
        accuracy_file=scores.get("file"),
        latency_ms_model=_by_size(model_seconds),
        latency_ms_file=_by_size(file_seconds),
        megabytes=file.stat().st_size / 1e6,
    )
    _judge(verdict, max_accuracy_drop)
    return verdict


def _judge(verdict: Verdict, max_accuracy_drop: float) -> None:
    largest, allowed = verdict.largest_difference, verdict.tolerance
    if not np.isfinite(largest) or (allowed is not None and largest > allowed):
        raise ExportError(
            "The exported file does not answer like the model: its answers differ by up to "
            f"{largest:.2g}, {'any number' if allowed is None else f'{allowed:.2g}'} is allowed. "
            f"Most on {verdict.worst_image}."
        )
    if verdict.accuracy_model is None or verdict.accuracy_file is None:
        return
    drop = verdict.accuracy_model - verdict.accuracy_file
    if drop > max_accuracy_drop + 1e-9:
        raise ExportError(
            f"The exported file is worse than the model: right on {verdict.accuracy_file:.1%} "
            f"instead of {verdict.accuracy_model:.1%} of {verdict.images} images, which is more "
            f"than max_accuracy_drop={max_accuracy_drop:g}. Its answers differ most on "
            f"{verdict.worst_image}."
        )


def _ask_model(
    model: Model, paths: Sequence[Path], known: Mapping[Path, Tensor], *, gives_features: bool
) -> Tensor:
    answer = _answer_of(model, gives_features=gives_features)
    rows = []
    for path in paths:
        if path in known and not gives_features:
            rows.append(known[path].unsqueeze(0))
            continue
        try:
            pixels = read_pixels(path, model.description.max_megapixels)
        except ImageError as error:
            raise DataError(f"{path}: {error}.") from None
        rows.append(torch.from_numpy(answer(pixels)))
    return torch.cat(rows).double()


def _answer_of(model: Model, *, gives_features: bool) -> Answer:
    def answer(images: Pixels) -> Numbers:
        resized = model.preprocess.resize(torch.from_numpy(images))
        ask = model.features if gives_features else model.probabilities
        numbers: Numbers = ask(resized).numpy()
        return numbers

    return answer


def _ask_file(
    file: Path, paths: Sequence[Path], max_megapixels: float, *, is_timed: bool
) -> tuple[Tensor, list[float]]:
    """Run the file in a process that knows nothing of the model.

    Raises:
        ExportError: the process fails.
    """
    with TemporaryDirectory() as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.npz"
        asked = {
            "file": str(file.resolve()),
            "images": [str(path.resolve()) for path in paths],
            "max_megapixels": max_megapixels,
            "is_timed": is_timed,
        }
        request.write_text(json.dumps(asked))
        _answer_apart(request, result)
        found = np.load(result, allow_pickle=False)
        return torch.from_numpy(found["numbers"]).double(), found["latencies"].tolist()


def _answer_apart(request: Path, result: Path) -> None:
    command = [sys.executable, "-m", "finetune.exports.answering", str(request), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # noqa: S603
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise ExportError(f"The exported file fails: {lines[-1]}")


def _scores(ours: Tensor, theirs: Tensor, targets: Tensor, task: Any) -> dict[str, Any]:
    true = as_hot(targets, ours.shape[1])
    model, file = decide(ours, task), decide(theirs, task)
    return {
        "same": int((model == file).all(1).sum()),
        "model": float((model == true).all(1).double().mean()),
        "file": float((file == true).all(1).double().mean()),
    }


def _by_size(seconds: Sequence[float]) -> dict[int, float]:
    if not seconds:
        return {}
    return {size: 1000 * value for size, value in zip(REPEATS, seconds, strict=True)}
