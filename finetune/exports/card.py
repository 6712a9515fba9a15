"""The model card: a ``README.md`` in the Hugging Face format, beside the bundle."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from finetune.exports.description import Description
from finetune.terminal import printable

_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "exact_match": "all labels right",
    "mean_average_precision": "mean average precision",
    "log_loss": "log loss",
    "expected_calibration_error": "expected calibration error",
}
"""Figures of the card, and what they are called there."""


def model_card(
    description: Description,
    *,
    name: str,
    dataset: str,
    worries: Sequence[tuple[str, str]],
) -> str:
    """Write the card.

    Args:
        description: of the bundle, with its metrics by split.
        name: of the model.
        dataset: that it was trained on.
        worries: what is known to be weak: title and text.

    Source: Mitchell et al. 2019, "Model cards for model reporting"; the fields at the top are
    those of the Hugging Face hub.
    """
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=dataset,
            dataset_split=split,
            metric_type=key,
            metric_name=label,
            metric_value=round(float(figures[key]), 6),
        )
        for split, figures in description.metrics.items()
        for key, label in _METRICS.items()
        if isinstance(figures.get(key), float)
    ]
    data = ModelCardData(
        library_name="finetune",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "transfer-learning"],
        model_name=name,
        eval_results=results,
    )
    return "\n".join(
        [
            "---",
            data.to_yaml().strip(),
            "---",
            "",
            f"# {_plain(name)}",
            "",
            *_purpose(description, dataset),
            *_figures(description.metrics),
            *_limits(description, worries),
            *_use(description),
        ]
    )


def _purpose(description: Description, dataset: str) -> list[str]:
    names = description.class_names
    shown = ", ".join(_plain(text) for text in names[:50])
    more = f" and {len(names) - 50} more" if len(names) > 50 else ""
    size = description.preprocessing.get("image_size_px")
    kind = "one of" if description.task == "multiclass" else "any of"
    return [
        f"A {_plain(description.backbone.name)} with a {description.head.name} head, fine-tuned "
        f"on {_plain(dataset)}. It takes a photograph (RGB, resized to {size} x {size} px within "
        f"the model) and gives {kind} {len(names)} classes: {shown}{more}.",
        "",
    ]


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    lines = ["## Evaluation", ""]
    for split, figures in metrics.items():
        lines += [f"On {figures.get('n', '?')} images of {split}, with 95 % intervals:", ""]
        lines += ["| metric | value | from | to |", "| --- | --- | --- | --- |"]
        overall = (figures.get("intervals") or {}).get("overall", {})
        for key, label in _METRICS.items():
            value = figures.get(key)
            if isinstance(value, float):
                ends = overall.get(key) or {}
                low, high = (_number(ends.get(end)) for end in ("low", "high"))
                lines.append(f"| {label} | {value:.4f} | {low} | {high} |")
        lines.append("")
    return lines


def _limits(description: Description, worries: Sequence[tuple[str, str]]) -> list[str]:
    lines = ["## Limits", ""]
    lines += [f"- **{_plain(title)}.** {_plain(text)}" for title, text in worries]
    lines.append(
        "- It answers for images like those that it was trained and measured on; for others, "
        "measure again before you rely on it."
    )
    if description.temperature != 1:
        lines.append(f"- Its logits are divided by a temperature of {description.temperature:.4g}.")
    if description.abstain_below is not None:
        lines.append(
            f"- Answers less probable than {description.abstain_below:.4g} are better left to a "
            "person."
        )
    if description.sets is not None:
        lines.append(
            f"- Prediction sets were made to hold the true class in {description.sets.coverage:.0%}"
            f" of the cases, on {description.sets.images} images."
        )
    return [*lines, ""]


def _use(description: Description) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in description.versions.items())
    return [
        "## Use",
        "",
        "```python",
        "import finetune",
        "",
        'model = finetune.load_model("FOLDER")  # that holds model.json and model.safetensors',
        'answer = model.predict(["photo.jpg"])[0]',
        "print(answer.label, answer.probability, answer.abstained, answer.prediction_set)",
        "```",
        "",
        "## Training",
        "",
        f"Trained with {versions}:",
        "",
        # Indented code cannot be left by anything that the command holds.
        *(f"    {line}" for line in description.command.splitlines() or [""]),
        "",
    ]


def _plain(text: str) -> str:
    """Put anybody's text on one line in which Markdown and HTML mean nothing."""
    line = printable(re.sub(r"\s+", " ", text)).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", line).replace("\\<", "&lt;")


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""
