"""What is found out about a trained model: its calibration, and how sure its figures are.

Shapes: ``N`` images, ``C`` classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.commands.measure import Answers, AnyMetrics, metrics_of
from finetune.config import EvidenceConfig
from finetune.evaluation.abstention import (
    Abstention,
    apply_threshold,
    choose_threshold,
    why_no_threshold,
)
from finetune.evaluation.conformal import (
    SetReport,
    SetRule,
    cross_fitted_coverage,
    describe_sets,
    fit_sets,
)
from finetune.evaluation.intervals import Intervals, bootstrap_intervals
from finetune.evaluation.operating_points import (
    OperatingPoint,
    choose_operating_points,
    operating_point_at,
)
from finetune.evaluation.temperature import Calibration, calibrate
from finetune.exports.bundle import Model, set_evidence
from finetune.exports.description import PredictionSets, read_description
from finetune.exports.interface import JSON_NAME
from finetune.models.answers import as_hot, confidence, decide, to_probabilities


@dataclass(frozen=True)
class Calibrated:
    """What the validation images taught about the model; each None where not asked, or not known.

    Attributes:
        calibration: the temperature, and what it brings on images that it was not fitted to.
        abstention: the threshold below which answers are better left to a person.
        why_no_abstention: why there is none, in a sentence; empty where there is one.
        sets: how prediction sets are made.
        sets_coverage: how often they held the true class of images that they were not fitted to.
    """

    calibration: Calibration | None = None
    abstention: Abstention | None = None
    why_no_abstention: str = ""
    sets: SetRule | None = None
    sets_coverage: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """What a model achieves on some labelled images.

    Attributes:
        answers: of the model.
        probabilities: ``[N, C]`` at the model's temperature.
        metrics: of these.
        intervals: of the metrics; None where none were asked.
        operating_points: of two classes.
        sets: how large the prediction sets are, and how often right; None without.
        answered: what abstention leaves here; None without.
    """

    answers: Answers
    probabilities: Tensor
    metrics: AnyMetrics
    intervals: Intervals | None
    operating_points: tuple[OperatingPoint, ...]
    sets: SetReport | None
    answered: Abstention | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the metrics, and what else is known beside them."""
        return {
            **self.metrics.to_dict(),
            "intervals": None if self.intervals is None else self.intervals.to_dict(),
            "operating_points": [asdict(point) for point in self.operating_points],
            "sets": None if self.sets is None else asdict(self.sets),
            "abstention": None if self.answered is None else asdict(self.answered),
        }


def calibrate_bundle(
    folder: Path, model: Model, val: Answers, config: EvidenceConfig, *, seed: int
) -> tuple[Model, Calibrated]:
    """Fit temperature, prediction sets and abstention, and write them into the bundle.

    Args:
        folder: of the bundle.
        model: loaded from there, not calibrated yet.
        val: its answers on the validation images.
        config: what is asked.
        seed: of the folds.

    Returns:
        The same model as it is from now on, and what was found.
    """
    task = model.description.task
    calibration = None
    if config.calibrate:
        calibration = calibrate(val.logits, val.targets, task=task, groups=val.groups, seed=seed)
    temperature = 1.0 if calibration is None else calibration.temperature
    probabilities = to_probabilities(val.logits, task, temperature)
    sets, coverage = None, None
    if config.coverage is not None and task == "multiclass":
        sets = fit_sets(probabilities, val.targets, coverage=config.coverage)
    if sets is not None:
        coverage = cross_fitted_coverage(
            probabilities, val.targets, coverage=sets.coverage, groups=val.groups, seed=seed
        )
    abstention, why = None, ""
    if config.max_error is not None:
        wanted = None if config.max_error == "auto" else config.max_error
        sure, right = confidence(probabilities, task), _are_right(probabilities, val.targets, task)
        abstention = choose_threshold(sure, right, max_error=wanted)
        why = "" if abstention else why_no_threshold(sure, right, max_error=wanted)
    set_evidence(
        folder,
        temperature=temperature,
        sets=None if sets is None else PredictionSets(**asdict(sets)),
        abstain_below=None if abstention is None else abstention.threshold,
    )
    calibrated = Calibrated(calibration, abstention, why, sets, coverage)
    description = read_description(folder / JSON_NAME)
    return Model(model.classifier, model.preprocess, description), calibrated


def measure_answers(
    model: Model,
    answers: Answers,
    config: EvidenceConfig,
    *,
    seed: int,
    known_points: Sequence[Mapping[str, Any]] | None = None,
) -> Measured:
    """Find out all that the answers say.

    Args:
        model: as calibrated.
        answers: of it, on any labelled images.
        config: what is asked.
        seed: of the bootstrap.
        known_points: rule and threshold of operating points that were chosen on other images;
            None chooses them here.
    """
    task, probabilities = model.description.task, answers.probabilities(model)
    intervals = None
    if config.resamples:
        intervals = bootstrap_intervals(
            probabilities,
            answers.targets,
            model.class_names,
            task=task,
            groups=answers.groups,
            resamples=config.resamples,
            seed=seed,
        )
    points: tuple[OperatingPoint, ...] = ()
    if task == "multiclass" and len(model.class_names) == 2:
        points = _operating_points(probabilities[:, 1], answers.targets == 1, config, known_points)
    sets, rule = None, model.description.sets
    if rule is not None:
        sets = describe_sets(probabilities, answers.targets, SetRule(**rule.model_dump()))
    answered = None
    if model.description.abstain_below is not None:
        answered = apply_threshold(
            confidence(probabilities, task),
            _are_right(probabilities, answers.targets, task),
            model.description.abstain_below,
        )
    return Measured(
        answers=answers,
        probabilities=probabilities,
        metrics=metrics_of(model, answers),
        intervals=intervals,
        operating_points=points,
        sets=sets,
        answered=answered,
    )


def _operating_points(
    scores: Tensor,
    is_positive: Tensor,
    config: EvidenceConfig,
    known: Sequence[Mapping[str, Any]] | None,
) -> tuple[OperatingPoint, ...]:
    if known is None:
        return choose_operating_points(
            scores,
            is_positive,
            min_sensitivity=config.min_sensitivity,
            min_specificity=config.min_specificity,
        )
    return tuple(
        operating_point_at(scores, is_positive, float(point["threshold"]), str(point["rule"]))
        for point in known
    )


def _are_right(probabilities: Tensor, targets: Tensor, task: Any) -> Tensor:
    """Tell whose labels are all right, bool ``[N]``."""
    return (decide(probabilities, task) == as_hot(targets, probabilities.shape[1])).all(1)
