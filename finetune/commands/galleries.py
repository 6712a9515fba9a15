"""The images of a report: which ones, what the network saw of each, and where it looked.

Shapes: ``S`` pixels a side.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.commands.evidence import Measured
from finetune.commands.label_issues import LabelIssues
from finetune.commands.training_images import TrainingImages
from finetune.data.decode import decode_image
from finetune.errors import ImageError
from finetune.evaluation.cases import cell_members, doubts, sure_and_right, sure_mistakes
from finetune.evaluation.failures import group_failures
from finetune.evaluation.report.content import Case, Gallery, Neighbour, Picture
from finetune.evaluation.report.pictures import overlay, picture
from finetune.exports.bundle import Model
from finetune.models.answers import SEPARATOR, as_hot, confidence, decide
from finetune.models.explain import NoMapError, class_activation_maps

NEIGHBOURS = 3
GROUPS = 4
"""Groups of failures that are shown, each with at most so many images."""
GROUP_IMAGES = 6
CELL_IMAGES = 12
DIAGONAL_IMAGES = 4
ALL_CELL_IMAGES = 200
_HEAT_BATCH = 8


@dataclass(frozen=True)
class Galleries:
    """All pictures of a report.

    Attributes:
        galleries: in order.
        cells: images of the confusion matrix, by true and given class.
        heat_text: how the maps were made, or why there are none.
    """

    galleries: tuple[Gallery, ...]
    cells: Mapping[tuple[int, int], tuple[Case, ...]]
    heat_text: str


class Eye:
    """Looks at image files as the network does; each file is read once.

    Args:
        model: the bundle's.
        root: where the images' paths begin.
    """

    def __init__(self, model: Model, root: Path) -> None:
        self.model = model
        self.root = root
        self.reason = ""
        self._seen: dict[str, Tensor | None] = {}

    def see(self, path: str) -> Tensor | None:
        """Give ``[1, 3, S, S]`` in 0..255; None where the file cannot be read any more."""
        if path not in self._seen:
            limit = self.model.description.max_megapixels
            try:
                pixels = decode_image(self.root / path, max_megapixels=limit)
            except (ImageError, OSError):
                self._seen[path] = None
            else:
                image = torch.from_numpy(pixels).permute(2, 0, 1)
                self._seen[path] = self.model.preprocess.resize(image)
        return self._seen[path]

    def draw(self, path: str) -> Picture | None:
        """Give what the network sees of a file."""
        seen = self.see(path)
        return None if seen is None else picture(_pixels(seen))

    def explain(self, paths: Sequence[str], classes: Sequence[int]) -> list[Picture | None]:
        """Give the same with the places that speak for a class in colour; None without a map.

        ``reason`` says why there is none of any.
        """
        drawn: list[Picture | None] = []
        for start in range(0, len(paths), _HEAT_BATCH):
            chosen = paths[start : start + _HEAT_BATCH]
            images = {path: seen for path in chosen if (seen := self.see(path)) is not None}
            wanted = [
                index
                for path, index in zip(chosen, classes[start : start + _HEAT_BATCH], strict=True)
                if path in images
            ]
            heats = iter(self._heats([images[p] for p in chosen if p in images], wanted))
            for path in chosen:
                heat = next(heats) if path in images else None
                is_map = heat is not None and bool(heat.any())
                drawn.append(
                    overlay(_pixels(images[path]), heat) if is_map and heat is not None else None
                )
        return drawn

    def _heats(
        self, images: Sequence[Tensor], classes: Sequence[int]
    ) -> Iterable[np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None]:
        if not images or self.reason:
            return [None] * len(images)
        model = self.model
        normalised = model.preprocess.normalise(torch.cat(list(images))).to(model.device)
        try:
            heats = class_activation_maps(
                model.classifier.backbone,
                model.classifier.head,
                normalised.contiguous(memory_format=torch.channels_last),
                torch.tensor(classes),
            )
        except NoMapError as error:
            self.reason = str(error)
            return [None] * len(images)
        return list(heats.numpy())


def make_galleries(
    model: Model,
    measured: Measured,
    *,
    count: int,
    training: TrainingImages | None = None,
    issues: LabelIssues | None = None,
) -> Galleries:
    """Choose and draw the images of a report.

    Args:
        model: the bundle's, calibrated.
        measured: what the report is about.
        count: images of each gallery; 0 for no pictures at all.
        training: to find the training images that look like a mistake; None where unknown.
        issues: labels that are probably wrong; None where nobody looked.
    """
    if not count:
        return Galleries((), {}, "")
    answers, task = measured.answers, model.description.task
    eye = Eye(model, answers.root)
    sure = confidence(measured.probabilities, task)
    given = decide(measured.probabilities, task)
    is_right = (given == as_hot(answers.targets, given.shape[1])).all(1)
    cases = _Cases(model, measured, eye, sure, given)
    wrong = sure_mistakes(sure, is_right, count=count)
    right = sure_and_right(sure, is_right, answers.targets, count=min(count, 6))
    galleries = [
        Gallery(
            "The surest mistakes",
            "Wrong answers that the model was most sure of. Look whether the label is wrong, "
            "whether the picture shows something else as well, or whether training never showed "
            "such images.",
            tuple(cases.with_neighbours(wrong, training)),
        ),
        Gallery(
            "The deepest doubts",
            "The answers that the model was least sure of, right or wrong.",
            tuple(cases.explained(doubts(sure, count=count))),
        ),
        Gallery(
            "Right, and sure of it",
            "For comparison: where the model looks when it is right. If it looks at something "
            "that has nothing to do with the class, it has learned a shortcut.",
            tuple(cases.explained(right)),
        ),
    ]
    cells: Mapping[tuple[int, int], tuple[Case, ...]] = {}
    if task == "multiclass":
        galleries += _failure_groups(model, measured, cases)
        members = cell_members(
            answers.targets,
            given.long().argmax(1),
            sure,
            wrong=CELL_IMAGES,
            right=DIAGONAL_IMAGES,
            total=ALL_CELL_IMAGES,
        )
        cells = {
            cell: tuple(cases.plain(index) for index in indices)
            for cell, indices in members.items()
        }
    galleries += _issue_galleries(issues, eye, count)
    return Galleries(
        tuple(gallery for gallery in galleries if gallery.cases), cells, _heat_text(eye.reason)
    )


class _Cases:
    """Makes the cases of one report."""

    def __init__(
        self, model: Model, measured: Measured, eye: Eye, sure: Tensor, given: Tensor
    ) -> None:
        self.names = model.class_names
        self.measured = measured
        self.eye = eye
        self.sure = sure
        self.given = given

    def plain(self, index: int) -> Case:
        sample = self.measured.answers.samples[index]
        names = [self.names[place] for place in self.given[index].nonzero().flatten().tolist()]
        return Case(
            path=sample.path,
            truth=SEPARATOR.join(sample.labels),
            given=SEPARATOR.join(names),
            probability=float(self.sure[index]),
            picture=self.eye.draw(sample.path),
        )

    def explained(self, indices: Sequence[int]) -> list[Case]:
        cases = [self.plain(index) for index in indices]
        best = [int(self.measured.probabilities[index].argmax()) for index in indices]
        heats = self.eye.explain([case.path for case in cases], best)
        return [replace(case, heat=heat) for case, heat in zip(cases, heats, strict=True)]

    def with_neighbours(
        self, indices: Sequence[int], training: TrainingImages | None
    ) -> list[Case]:
        cases = self.explained(indices)
        if training is None:
            return cases
        seen = [(place, self.eye.see(case.path)) for place, case in enumerate(cases)]
        known = [(place, image) for place, image in seen if image is not None]
        if not known:
            return cases
        found = training.nearest(torch.cat([image for _, image in known]), count=NEIGHBOURS)
        for (place, _), row in zip(known, found, strict=True):
            neighbours = tuple(
                Neighbour(path, label, similarity, self.eye.draw(path))
                for path, label, similarity in row
            )
            cases[place] = replace(cases[place], neighbours=neighbours)
        return cases


def _failure_groups(model: Model, measured: Measured, cases: _Cases) -> list[Gallery]:
    answers, names = measured.answers, model.class_names
    groups = group_failures(answers.features, answers.targets, measured.probabilities.argmax(1))
    return [
        Gallery(
            f"{len(group.members)} mistakes alike: {names[group.truth]} taken for "
            f"{names[group.given]}",
            "These look alike to the network, so that one remedy may mend them all: more training "
            "images of this kind.",
            tuple(cases.plain(index) for index in group.members[:GROUP_IMAGES]),
        )
        for group in groups[:GROUPS]
    ]


def _issue_galleries(issues: LabelIssues | None, eye: Eye, count: int) -> list[Gallery]:
    if issues is None:
        return []
    galleries = []
    for split, judge in (
        ("train", "by a probe that was fitted without them"),
        ("val", "by this model"),
    ):
        rows = [row for row in issues.rows if row.split == split]
        cases = tuple(
            Case(
                path=row.path,
                truth=row.label,
                given=row.suggested,
                probability=row.probability,
                picture=eye.draw(row.path),
                note=row.note,
            )
            for row in rows[:count]
        )
        galleries.append(
            Gallery(
                f"Perhaps mislabelled, in {split}",
                f"{len(rows)} of {issues.images[split]} images look more like another class than "
                f"like their label, {judge} (confident learning); the likeliest first. Some are "
                "simply hard. All of them are in label_issues.csv."
                if rows
                else "",
                cases,
            )
        )
    return galleries


def _heat_text(reason: str) -> str:
    if reason:
        return f"There are no heat maps: {reason}."
    return (
        "Heat maps show which places of the picture speak for the answer (HiResCAM on the "
        "network's last feature map; with a linear head these places add up to the answer's "
        "score). They are coarse, and say where the network looked, not what it saw there."
    )


def _pixels(resized: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = (
        resized[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    )
    return pixels
