"""The section `recognition`: the classifiers that name the category of a person."""

from __future__ import annotations

from pydantic import Field

from tasks.config.section import Fraction, Positive, Section, Seed


class Recognition(Section):
    """Training of the recogniser, and when it abstains."""

    train: bool = True  # about ten seconds; false: the stage writes that there is none
    steps: Positive = 400  # of the training of each view
    calibration: float = Field(
        default=0.25, gt=0, le=0.5
    )  # share of the training groups that set temperature and radius
    min_confidence: Fraction = 0.6  # below it a person is `unsure`
    false_rejection: float = Field(default=0.02, gt=0, lt=0.5)  # share of known persons that may be called `unknown`
    seed: Seed = 0
