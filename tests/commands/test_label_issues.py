"""The list of labels that look wrong."""

import csv
from pathlib import Path

import pytest
import torch

from finetune.commands.label_issues import find_issues, read_issues, write_issues
from finetune.data.discover import Sample

NAMES = ("ant", "=bee")


def sample(path: str, *labels: str) -> Sample:
    return Sample(path, labels, "train")


def test_the_file_gives_back_what_was_found(tmp_path: Path) -> None:
    samples = [sample(f"{i}.jpg", "ant") for i in range(9)] + [
        sample(f"=b{i}.jpg", "=bee") for i in range(9)
    ]
    targets = torch.tensor([0] * 9 + [1] * 9)
    rows = torch.tensor([[0.9, 0.1]] * 8 + [[0.02, 0.98]] + [[0.03, 0.97]] + [[0.1, 0.9]] * 8)
    rows[9] = torch.tensor([0.99, 0.01])
    found = find_issues(samples, targets, rows, NAMES, task="multiclass", split="train")
    assert {row.path for row in found.rows} == {"8.jpg", "=b0.jpg"}
    by_path = {row.path: row for row in found.rows}
    assert (by_path["8.jpg"].label, by_path["8.jpg"].suggested) == ("ant", "=bee")
    assert by_path["8.jpg"].probability == pytest.approx(0.98)
    assert found.images == {"train": 18}
    path = tmp_path / "label_issues.csv"
    write_issues(path, found)
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell.startswith("=") for cell in cells)  # which a spreadsheet would run
    again = read_issues(path, {"train": 18})
    assert again is not None
    assert [(row.path, row.label, row.suggested) for row in again.rows] == [
        (row.path, row.label, row.suggested) for row in found.rows
    ]
    assert read_issues(path, {"val": 3}) is not None
    assert read_issues(path, {"val": 3}).rows == ()  # type: ignore[union-attr]
    both = again + find_issues(samples, targets, rows, NAMES, task="multiclass", split="val")
    assert both.images == {"train": 18, "val": 18}
    assert len(both.rows) == 4


def test_of_several_labels_one_is_too_much_or_missing() -> None:
    names = ("cat", "dog")
    samples = [sample(f"{i}.jpg", "cat") for i in range(10)] + [
        sample(f"n{i}.jpg") for i in range(10)
    ]
    targets = torch.tensor([[1.0, 0.0]] * 10 + [[0.0, 0.0]] * 10)
    rows = torch.tensor([[0.9, 0.1]] * 10 + [[0.1, 0.1]] * 10)
    rows[0, 0], rows[10, 0] = 0.02, 0.98
    found = find_issues(samples, targets, rows, names, task="multilabel", split="train")
    by_path = {row.path: row for row in found.rows}
    assert by_path["0.jpg"].note == "cat is probably too much."
    assert (by_path["0.jpg"].label, by_path["0.jpg"].suggested) == ("cat", "")
    assert by_path["0.jpg"].probability == pytest.approx(0.98)
    assert by_path["n0.jpg"].note == "cat is probably missing."
    assert by_path["n0.jpg"].suggested == "cat"


def test_without_a_file_nobody_has_looked(tmp_path: Path) -> None:
    assert read_issues(tmp_path / "label_issues.csv", {"train": 1}) is None
