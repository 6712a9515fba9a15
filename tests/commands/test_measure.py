"""What is said about a model's figures."""

import io
from pathlib import Path

import PIL.Image
import pytest
import torch
from rich.console import Console

from finetune.commands.measure import (
    compute_metrics,
    headline,
    metrics_table,
    percent,
    plot_metrics,
)
from finetune.evaluation.metrics import Metrics, classification_metrics
from finetune.evaluation.multilabel import MultilabelMetrics
from finetune.models.answers import Task


def test_undefined_is_said() -> None:
    assert percent(None) == "undefined"
    assert percent(0.1234) == "12.3 %"
    one_sided = classification_metrics(
        torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 0]), ["no", "yes"]
    )
    text = headline(one_sided)
    assert "accuracy 100.0 %" in text
    assert "AUROC undefined" in text
    assert "sensitivity undefined (of yes)" in text


def test_class_names_are_shown_as_they_are() -> None:
    names = ["[bold red]a", "b]", "c"]
    metrics = classification_metrics(torch.eye(3).softmax(dim=1), torch.tensor([0, 1, 2]), names)
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_table(metrics, "val"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for name in names:
        assert name in text


def test_many_classes_are_cut_short() -> None:
    names = [f"class {index}" for index in range(50)]
    metrics = classification_metrics(torch.eye(50).softmax(dim=1), torch.arange(50), names)
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_table(metrics, "val"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "… 20 more" in text
    assert "class 29" in text
    assert "class 30" not in text


def test_several_labels_have_other_figures_in_the_same_table() -> None:
    probabilities = torch.tensor([[0.9, 0.6, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.2]])
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    names = ["[bold]opacity", "nodule", "absent"]
    metrics = compute_metrics(probabilities, targets, names, task="multilabel")
    assert isinstance(metrics, MultilabelMetrics)
    text = headline(metrics)
    assert "mean average precision 100.0 %" in text
    assert "all labels right in 66.7 % of the images" in text
    assert "macro F1 83.3 %" in text
    console = Console(file=io.StringIO(), width=100)
    console.print(metrics_table(metrics, "val"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1].split() == ["class", "images", "precision", "recall", "F1", "AP"]
    assert lines[2].startswith("[bold]opacity  ")
    assert lines[4].count("undefined") == 4


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_each_task_has_its_picture(task: Task, tmp_path: Path) -> None:
    targets = torch.arange(3) if task == "multiclass" else torch.eye(3)
    metrics = compute_metrics(torch.eye(3), targets, ["a", "b", "c"], task=task)
    assert isinstance(metrics, Metrics) == (task == "multiclass")
    plot_metrics(metrics, tmp_path / "picture.png")
    with PIL.Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
