"""The section of trainings on folds: folds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.config.section import Positive, Section, Seed


class Folds(Section):
    """How `contrapposto train MODEL --folds K` finds the length of the training on all examples."""

    until: Literal["turn", "alarm"] = "turn"  # of the held-out loss; of the loss gap, which is earlier and stricter
    safe_fraction: float = Field(default=0.8, gt=0, le=1)  # of the predicted onset
    patience: Positive = 3  # evaluations in a row with a held-out loss 1% above the lowest that end a short training
    evaluations_ratio: float = Field(default=1.2, gt=1, le=4)  # images at an evaluation over those at the one before
    seed: Seed = 0  # of the dealing
