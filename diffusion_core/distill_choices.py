"""The methods of distillation that can be chosen by name, such as in `params.yaml`.

A student has its teacher's network and, to begin with, its weights. Another loss teaches it to sample in fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusion_core.choice_table import Choice, Parameter, Value, check_name, check_parameters, core, numbers
from diffusion_core.choices import Grid
from diffusion_core.training_choices import RECIPES, Training

if TYPE_CHECKING:
    from diffusion_core.denoiser import Denoiser, Preconditioned
    from diffusion_core.recipe import Recipe
    from diffusion_core.schedules import Level


@dataclass(frozen=True, kw_only=True)
class DistillationChoice(Choice):
    """A method. `loss`: (teacher, student, the teacher's timesteps, its steps for one of the student, parameters) -> loss.

    `sampler`: what the student is sampled with. `halves`: whether one training halves the steps, so that several follow each
    other. `every_step`: whether it is trained where any step of the teacher begins, and not only where its own steps begin.
    """

    loss: Callable[..., Any]
    sampler: str
    halves: bool = False
    every_step: bool = False
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
        sampler="consistency", every_step=True,
        parameters={"decay": Parameter("of the slow copy in a step", 0.95, 0.0, 0.9999)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Student:
    """What a student learned: each of its steps replaces `times` of the `total` steps of the first teacher."""

    method: str
    total: int
    times: int

    @property
    def steps(self) -> int:
        """In which it is sampled."""
        return self.total // self.times

    @property
    def sampler(self) -> str:
        """With which it is sampled."""
        return DISTILLATIONS[self.method].sampler

    def timesteps(self, training: Training, recipe: Recipe) -> list[Level]:
        """The levels that it visits, on the CPU."""
        return Grid(training.recipe, recipe, self.total).own(self.total)[:: self.times]


@dataclass(frozen=True)
class Distillation:
    """A method, the student's steps, how many of the teacher's each of them replaces, and the method's parameters."""

    method: str
    steps: int
    times: int
    parameters: Mapping[str, Value] = field(default_factory=dict)

    @property
    def students(self) -> list[Student]:
        """The students, one after the other; each but the first has the one before as its teacher."""
        total = self.steps * self.times
        if not DISTILLATIONS[self.method].halves:
            return [Student(self.method, total, self.times)]
        return [Student(self.method, total, 2**k) for k in range(1, self.times.bit_length())]

    def check(self) -> None:
        """Raise ValueError, with a clause that says why, if this is not possible."""
        check_name(DISTILLATIONS, "distillation", self.method)
        choice = DISTILLATIONS[self.method]
        check_parameters(choice.parameters, f"distillation {self.method}", self.parameters)
        if choice.halves and self.times & (self.times - 1):
            raise ValueError(f"times must be a power of 2 for distillation {self.method}, got {self.times}")

    def check_teacher(self, training: Training) -> None:
        """Raise ValueError, with a clause that says why, if a model that is trained in this way cannot be the teacher."""
        if RECIPES[training.recipe].cold:
            raise ValueError(f"recipe {training.recipe} cannot be distilled, because it adds no noise")
        if RECIPES[training.recipe].mixed:
            raise ValueError(f"recipe {training.recipe} cannot be distilled, because it has several networks")
        if training.predicts == "noise":
            raise ValueError(
                f"recipe {training.recipe} can be distilled only with target x0, v or velocity: a prediction of the noise does "
                "not determine x0 at the noisiest level"
            )
        try:
            training.check_steps(self.steps * self.times)
        except ValueError as error:
            raise ValueError(f"{error} (steps x times of the distillation)") from error

    def recipe(
        self, student: Student, training: Training, recipe: Recipe, teacher: Denoiser, denoiser: Preconditioned
    ) -> Recipe:
        """The recipe that trains one of the students, whose denoiser begins as the teacher.

        The levels are those at which its steps begin. The weight is max(SNR, 1) (arXiv 2202.00512, section 4), or 1 for
        consistency.
        """
        choice = DISTILLATIONS[self.method]
        times = 2 if choice.halves else student.times
        timesteps = Student(self.method, student.total, student.times // times).timesteps(training, recipe)
        parameters = numbers(choice.parameters, self.parameters)
        starts = timesteps[:-1] if choice.every_step else timesteps[:-1:times]
        losses = core("losses")
        return recipe.replace(
            loss=choice.loss(teacher, denoiser, timesteps, times, **parameters),
            density=losses.one_of(starts),
            weight=_ones if choice.every_step else _truncated_snr,
            draw=losses.stratified,
            importance=None,
        )


def _truncated_snr(level: Level) -> Any:
    return level.snr.clamp(min=1)


def _ones(level: Level) -> Any:
    return level.a**0
