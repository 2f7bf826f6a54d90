"""The section `distill`: a student that is trained to sample in fewer steps than its teacher, a trained model."""

from __future__ import annotations

from pydantic import Field, model_validator

from diffusion_core.choice_table import Value
from diffusion_core.distill_choices import Distillation
from tasks.config.section import DistillationName, Positive, Section, Seed


class Distill(Section):
    """The distillation of one model. What is not here, such as the optimiser, is as in the teacher's training."""

    method: DistillationName
    steps: int = Field(default=4, ge=1, le=256)  # of the student
    # Steps of the teacher for each step of the student; of the method progressive a power of 2.
    times: int = Field(default=4, ge=2, le=256)
    parameters: dict[str, Value] = Field(default={})  # of the method; null: its default
    guidance: float = Field(default=1.0, ge=0, le=100)  # of the teacher, which the student learns; 1: none
    images: Positive = 32_000  # length of the training, of the method progressive for each halving of the steps
    learning_rate: float = Field(default=3e-4, gt=0, lt=1)
    muon_learning_rate: float = Field(default=0.001, gt=0, lt=1)  # if the teacher's optimiser is muon
    warmup_images: int = Field(default=1_000, ge=0)
    cooldown_images: int = Field(default=16_000, ge=0)
    ema_halflife_images: int = Field(default=2_000, ge=0)
    checkpoint_images: Positive = 16_000
    seed: Seed = 0

    @property
    def distillation(self) -> Distillation:
        """The method as the core knows it."""
        return Distillation(self.method, self.steps, self.times, self.parameters)

    @model_validator(mode="after")
    def _is_possible(self) -> Distill:
        self.distillation.check()
        return self
