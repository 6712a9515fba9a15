"""The model card."""

import re

import yaml
from huggingface_hub import ModelCard

from finetune.exports.card import model_card
from finetune.exports.description import Backbone, Description, Head, PredictionSets

NAMES = ["ant", "<script>alert(1)</script>", "a|b\n# c [x](javascript:1)"]


def described(**changes: object) -> Description:
    values: dict[str, object] = {
        "format_version": 1,
        "task": "multiclass",
        "class_names": NAMES,
        "backbone": Backbone(name="resnet18", image_size_px=224),
        "head": Head(name="linear", arguments={}),
        "preprocessing": {"image_size_px": 224},
        "max_megapixels": 200,
        "weights_sha256": "0" * 64,
        "metrics": {
            "val": {
                "n": 50,
                "accuracy": 0.9,
                "auroc": None,
                "log_loss": 0.31,
                "intervals": {"overall": {"accuracy": {"low": 0.8, "high": 0.96}}},
            }
        },
        "versions": {"torch": "2.15.0"},
        "command": "finetune train 'x=```\n# no heading'",
    }
    return Description(**{**values, **changes})  # type: ignore[arg-type]


def card(**changes: object) -> str:
    return model_card(
        described(**changes), name="ants: resnet18", dataset="ants", worries=[("Few", "So *few*.")]
    )


def test_the_hub_reads_it() -> None:
    found = ModelCard(card()).data
    assert found.library_name == "finetune"
    assert found.pipeline_tag == "image-classification"
    results = {result.metric_type: result for result in found.eval_results or []}
    assert set(results) == {"accuracy", "log_loss"}  # what is undefined is left out
    assert results["accuracy"].metric_value == 0.9
    assert results["accuracy"].dataset_split == "val"


def test_it_says_figures_limits_and_use() -> None:
    text = card(
        temperature=1.5,
        abstain_below=0.6,
        sets=PredictionSets(coverage=0.95, limit=0.5, penalty=0, free_ranks=1, images=50),
    )
    assert "| accuracy | 0.9000 | 0.8000 | 0.9600 |" in text
    assert "temperature of 1.5" in text
    assert "less probable than 0.6" in text
    assert "95% of the cases, on 50 images" in text
    assert r"**Few.** So \*few\*." in text
    assert "finetune.load_model" in text


def test_anybodys_text_stays_text() -> None:
    text = card()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    assert yaml.safe_load(front)["model-index"][0]["name"] == "ants: resnet18"
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\[x", body)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings == ["# ants: resnet18", "## Evaluation", "## Limits", "## Use", "## Training"]
