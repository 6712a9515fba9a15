"""How the model of a report came about, read from its run directory."""

import csv
import math
import shlex
from collections.abc import Mapping
from typing import Any

from finetune.errors import RunError
from finetune.evaluation.report.content import Finding
from finetune.exports.bundle import Model
from finetune.record import read_json
from finetune.run import RunDirectory, typed

_EXAMPLES = 5


def read_epochs(run: RunDirectory) -> tuple[Mapping[str, float | None], ...]:
    """Read the rows of ``metrics.csv``: the one source of every curve. Empty without the file."""
    if not run.epochs.is_file():
        return ()
    with run.epochs.open(encoding="utf-8", newline="") as file:
        return tuple(
            {key: _number(text) for key, text in row.items()} for row in csv.DictReader(file)
        )


def read_findings(run: RunDirectory) -> tuple[str, tuple[Finding, ...]]:
    """Read what the audit found: what was looked at, and the findings, errors first.

    Raises:
        RunError: the file is damaged, or none of ours.
    """
    if not run.audit.is_file():
        return "", ()
    audit = read_json(run.audit)
    try:
        return _describe_audit(audit)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.audit} is damaged: {error!r}. Write it anew or remove it.") from None


def _describe_audit(audit: Mapping[str, Any]) -> tuple[str, tuple[Finding, ...]]:
    findings = tuple(
        Finding(
            name=found["name"].replace("_", " "),
            severity={"info": "note"}.get(found["severity"], found["severity"]),
            count=len(found["paths"]),
            message=found["message"],
            remedy="You accepted this." if found["accepted"] else found["remedy"],
            examples=tuple(found["paths"][:_EXAMPLES]),
        )
        for found in audit["findings"]
    )
    text = (
        f"{audit['num_images']:,} images were decoded in full before training, and compared with "
        f"each other: {len(audit['unreadable'])} cannot be used, {len(audit['duplicates'])} sets "
        f"are exact copies, {len(audit['near_duplicates'])} look the same."
    )
    return text, findings


def decisions(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Give what was decided, with its reason, in the order of the plan."""
    return tuple((key, str(value)) for key, value in record.get("decisions", {}).items())


def facts(
    record: Mapping[str, Any], model: Model, seconds: float | None
) -> tuple[tuple[str, str], ...]:
    """Give time, machine, size and versions."""
    weights = sum(parameter.numel() for parameter in model.classifier.parameters())
    rows = [
        ("started", str(record.get("started", ""))),
        ("time", "" if seconds is None else _duration(seconds)),
        ("device", str(record.get("decisions", {}).get("device", ""))),
        ("seed", str(record.get("seed", ""))),
        ("parameters", f"{weights:,}"),
        ("weights", f"SHA-256 {model.description.weights_sha256}"),
        *((name, str(version)) for name, version in record.get("versions", {}).items()),
    ]
    return tuple((name, value) for name, value in rows if value)


def reproduce(run: RunDirectory, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the command that trained, and the one that trains again on images divided alike.

    The second is without the name of the run, which is taken. A fold is divided by its own words.
    """
    command = str(record.get("command", ""))
    words = [word for word in shlex.split(command) if not word.startswith(("name=", "resume="))]
    if any(word.startswith("dataset.folds=") for word in words) or not words:
        return (command,) if command else ()
    return command, shlex.join([*words, f"dataset.split_file={run.split}"])


def deploy(run: RunDirectory) -> tuple[tuple[str, str], ...]:
    """Give commands and code that use the model."""
    folder = run.path
    code = "\n".join(
        [
            "import finetune",
            "",
            f"model = finetune.load_model({str(folder)!r})",
            'answer = model.predict(["photo.jpg"])[0]',
            "print(answer.label, answer.probability, answer.abstained, answer.prediction_set)",
        ]
    )
    alone = "\n".join(
        [
            "import json, numpy, PIL.Image, PIL.ImageOps, torch",
            "",
            'extra = {"model.json": ""}',
            f"model = torch.jit.load({str(run.torchscript)!r}, _extra_files=extra)",
            'classes = json.loads(extra["model.json"])["class_names"]',
            'image = PIL.ImageOps.exif_transpose(PIL.Image.open("photo.jpg")).convert("RGB")',
            "pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)",
            "probabilities = model(pixels)[0]",
            "print(classes[int(probabilities.argmax())], float(probabilities.max()))",
        ]
    )
    return (
        ("Label a folder of images", typed("predict", run=folder, input="IMAGES", output="a.csv")),
        ("A page to drop images on", typed("serve", run=folder)),
        ("Another format", typed("export", run=folder, format="onnx")),
        ("In Python", code),
        ("In Python, with torch alone", alone),
    )


def _number(text: str | None) -> float | None:
    if not text:
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
