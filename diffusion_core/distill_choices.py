"""The methods of distillation that can be chosen by name, such as in `params.yaml`.

A student has the teacher's network, weights to begin with, and noise levels; another loss teaches it to need fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusion_core.choice_table import Choice, Parameter, Value, check_name, check_parameters, core, numbers
from diffusion_core.training_choices import RECIPES, Training

if TYPE_CHECKING:
    from diffusion_core.denoiser import Denoiser, Preconditioned
    from diffusion_core.recipe import Recipe
    from diffusion_core.sampling.timesteps import Timesteps


@dataclass(frozen=True, kw_only=True)
class DistillationChoice(Choice):
    """A method. `loss`: (teacher, student, the teacher's timesteps, its steps for one of the student, parameters) -> loss.

    `sampler`: what the student is sampled with. `halves`: whether one round of training halves the steps.
    """

    loss: Callable[..., Any]
    sampler: str
    halves: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


DISTILLATIONS: Mapping[str, DistillationChoice] = {
    "progressive": DistillationChoice(
        title="Progressive distillation", code="training.distillation.progressive", paper="arXiv 2202.00512",
        loss=lambda teacher, student, timesteps, times: core("training.distillation").progressive(teacher, timesteps),
        sampler="ddim", halves=True,
    ),
    "direct": DistillationChoice(
        title="Direct distillation (many teacher steps in one round)", code="training.distillation.direct",
        paper="arXiv 2101.02388", sampler="ddim",
        loss=lambda teacher, student, timesteps, times: core("training.distillation").direct(teacher, timesteps, times),
    ),
    "consistency": DistillationChoice(
        title="Consistency distillation", code="training.distillation.Consistency", paper="arXiv 2303.01469",
        loss=lambda teacher, student, timesteps, times, **p: core("training.distillation").Consistency(
            teacher, student, timesteps, **p
        ),
        sampler="consistency",
        parameters={"decay": Parameter("of the slow copy in a step", 0.95, 0.0, 0.9999)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Distillation:
    """A method, the student's steps, and how many of the teacher's each of them is to replace."""

    method: str
    steps: int
    times: int
    parameters: Mapping[str, Value] = field(default_factory=dict)

    @property
    def choice(self) -> DistillationChoice:
        """The entry of the table."""
        return DISTILLATIONS[self.method]

    @property
    def rounds(self) -> int:
        """How many trainings follow each other, each with the student before as its teacher."""
        return self.times.bit_length() - 1 if self.choice.halves else 1

    def check(self) -> None:
        """Raise ValueError, with a clause that says why, if this is not possible."""
        check_name(DISTILLATIONS, "distillation", self.method)
        check_parameters(self.choice.parameters, f"distillation {self.method}", self.parameters)
        if self.choice.halves and self.times & (self.times - 1):
            raise ValueError(f"times must be a power of 2 for distillation {self.method}, got {self.times}")

    def check_teacher(self, training: Training) -> None:
        """Raise ValueError if a model that is trained in this way cannot be the teacher."""
        choice = RECIPES[training.recipe]
        if choice.cold:
            raise ValueError(f"distillation needs a recipe that adds noise, not {training.recipe}")
        target = training.target or ("noise" if "noise" in choice.targets and not choice.predicts_v else None)
        if target == "noise":
            raise ValueError(
                "distillation needs a prediction that determines x0 at the noisiest level: for recipe "
                f"{training.recipe} choose another target than noise"
            )
        training.check_steps(self.steps * self.times)

    def timesteps(self, recipe: Recipe, halvings: int | None = None) -> Timesteps:
        """The levels that the student visits; after so many halvings of the teacher's steps, or after all of them."""
        from diffusion_core.schedules import Level

        every = self.times if halvings is None else 2**halvings
        return [Level(a.detach().cpu(), s.detach().cpu()) for a, s in recipe.timesteps(self.steps * self.times)][
            ::every
        ]

    def recipe(self, recipe: Recipe, teacher: Denoiser, student: Preconditioned, halvings: int = 0) -> Recipe:
        """The recipe that trains the student, where the teacher has halved its steps so often already.

        Levels are drawn from those at which a step begins; the weight is max(SNR, 1), as in progressive distillation
        (arXiv 2202.00512, section 4), and 1 for consistency.
        """
        losses = core("losses")
        timesteps = self.timesteps(recipe, halvings)
        times = 2 if self.choice.halves else self.times
        loss = self.choice.loss(teacher, student, timesteps, times, **numbers(self.choice.parameters, self.parameters))
        every = 1 if self.method == "consistency" else times
        starts = [level for level in timesteps[:-1:every] if level.s > 0]
        weight = (lambda level: level.snr.clamp(min=1)) if self.choice.sampler == "ddim" else (lambda level: level.a**0)
        return recipe.replace(
            loss=loss, density=losses.one_of(starts), weight=weight, draw=losses.stratified, importance=None
        )
