"""``evidence=…``: what is found out about a model after it is trained."""

from typing import Annotated

from pydantic import Field

from finetune.config.types import Auto, Fraction, Group, Number, Whole


class EvidenceConfig(Group):
    """``evidence=…``: calibration, uncertainty, and the report.

    Attributes:
        calibrate: fit a temperature to the validation images, so that a probability of 0.8 is
            right in 80 % of the cases; part of the model from then on.
        coverage: share of images whose prediction set holds the true class, in (0, 1); null for
            no sets. One class per image alone.
        max_error: of the answers that are left when the model abstains from those it is least
            sure of; ``auto`` is half of its error on validation, null for no abstention.
        min_sensitivity: two classes: the operating point that keeps it.
        min_specificity: two classes: the operating point that keeps it.
        resamples: of the bootstrap behind the 95 % intervals; 0 for none.
        pictures: images in each gallery of the report, in 0..100.
        report: write ``report.html``.
        gain: of a training: train once more from random weights, and say what the pretrained ones
            were worth.
    """

    calibrate: bool
    coverage: Annotated[Number, Field(gt=0, lt=1)] | None
    max_error: Annotated[Number, Field(ge=0, lt=1)] | Auto | None
    min_sensitivity: Fraction
    min_specificity: Fraction
    resamples: Whole = Field(ge=0, le=100_000)
    pictures: Whole = Field(ge=0, le=100)
    report: bool
    gain: bool
