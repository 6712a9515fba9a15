"""What is said about a model's figures."""

import io

import torch
from rich.console import Console

from finetune.commands.measure import headline, metrics_table, percent
from finetune.evaluation.metrics import classification_metrics


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
