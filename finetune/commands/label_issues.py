"""``label_issues.csv``: labels that are probably wrong, of training and validation images."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from finetune.data.discover import Sample
from finetune.evaluation.label_issues import find_label_issues, find_multilabel_issues
from finetune.models.answers import SEPARATOR, Task
from finetune.prediction.columns import disarm_formula, escape_undecodable, restore_formula
from finetune.run import replacing

COLUMNS = ("path", "split", "label", "suggested", "probability", "score", "note")


@dataclass(frozen=True)
class LabelIssueRow:
    """An image whose label is probably wrong.

    Attributes:
        path: as in the split.
        split: ``train`` or ``val``.
        label: as given.
        suggested: what it looks more like.
        probability: of that.
        score: how improbable ``label`` is, in (0, 1].
        note: in a sentence, where the label is one of several.
    """

    path: str
    split: str
    label: str
    suggested: str
    probability: float
    score: float
    note: str = ""


@dataclass(frozen=True)
class LabelIssues:
    """Probable label errors, the likeliest of each split first.

    Attributes:
        rows: one per image, or per label of an image.
        images: that were looked at, by split.
    """

    rows: tuple[LabelIssueRow, ...]
    images: Mapping[str, int]

    def __add__(self, other: "LabelIssues") -> "LabelIssues":
        """Put those of another split after these."""
        return LabelIssues(self.rows + other.rows, {**self.images, **other.images})


def find_issues(
    samples: Sequence[Sample],
    targets: Tensor,
    probabilities: Tensor,
    class_names: Sequence[str],
    *,
    task: Task,
    split: str,
) -> LabelIssues:
    """Find the labels of one split that are probably wrong.

    Args:
        samples: ``N`` images.
        targets: classes ``[N]``, or multi-hot ``[N, C]``.
        probabilities: ``[N, C]``, of a model that did not train on them.
        class_names: ``C``.
        task: what the targets mean.
        split: of the images.
    """
    rows = []
    if task == "multiclass":
        for issue in find_label_issues(probabilities, targets):
            suggested = class_names[issue.suggested]
            probability = float(probabilities[issue.index, issue.suggested])
            sample = samples[issue.index]
            label = SEPARATOR.join(sample.labels)
            rows.append(
                LabelIssueRow(sample.path, split, label, suggested, probability, issue.score)
            )
    else:
        for found in find_multilabel_issues(probabilities, targets):
            sample, name = samples[found.index], class_names[found.label]
            of_label = float(probabilities[found.index, found.label])
            labels = [label for label in sample.labels if label != name]
            suggested = SEPARATOR.join(labels if found.is_given else [*labels, name])
            note = f"{name} is probably {'too much' if found.is_given else 'missing'}."
            rows.append(
                LabelIssueRow(
                    sample.path,
                    split,
                    SEPARATOR.join(sample.labels),
                    suggested,
                    1 - of_label if found.is_given else of_label,
                    found.score,
                    note,
                )
            )
    return LabelIssues(tuple(rows), {split: len(samples)})


def read_issues(path: Path, images: Mapping[str, int]) -> LabelIssues | None:
    """Read what `write_issues` wrote; None without the file.

    Args:
        path: the file.
        images: that were looked at, by split; rows of other splits are left out.
    """
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = tuple(
            LabelIssueRow(
                restore_formula(row["path"]),
                row["split"],
                restore_formula(row["label"]),
                restore_formula(row["suggested"]),
                float(row["probability"]),
                float(row["score"]),
                row["note"],
            )
            for row in csv.DictReader(file)
            if row["split"] in images
        )
    return LabelIssues(rows, images)


def write_issues(path: Path, issues: LabelIssues) -> None:
    """Write ``label_issues.csv``, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in issues.rows:
            texts = (row.path, row.split, row.label, row.suggested)
            safe = [disarm_formula(escape_undecodable(text)) for text in texts]
            numbers = [f"{row.probability:.4f}", f"{row.score:.4f}"]
            writer.writerow([*safe, *numbers, disarm_formula(escape_undecodable(row.note))])
