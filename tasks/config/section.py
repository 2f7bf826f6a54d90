"""The base class of the sections of `params.yaml`, and types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from diffusion_core import choices, distill_choices, training_choices
from diffusion_core.choice_table import check_name

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _in(table: Mapping[str, object], kind: str) -> AfterValidator:
    return AfterValidator(partial(check_name, table, kind))


def _schema(table: Mapping[str, object]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(table)})


# Names in the tables of `diffusion_core.training_choices` and `diffusion_core.choices`.
RecipeName = Annotated[str, _in(training_choices.RECIPES, "recipe"), _schema(training_choices.RECIPES)]
TargetName = Annotated[str, _in(training_choices.TARGETS, "target"), _schema(training_choices.TARGETS)]
WeightName = Annotated[str, _in(training_choices.WEIGHTS, "weight"), _schema(training_choices.WEIGHTS)]
LevelsName = Annotated[str, _in(training_choices.LEVELS, "way to draw levels"), _schema(training_choices.LEVELS)]
NoiseName = Annotated[str, _in(training_choices.NOISES, "noise"), _schema(training_choices.NOISES)]
DistillationName = Annotated[
    str, _in(distill_choices.DISTILLATIONS, "distillation"), _schema(distill_choices.DISTILLATIONS)
]
LossName = Annotated[str, _in(training_choices.LOSSES, "loss"), _schema(training_choices.LOSSES)]
SamplerName = Annotated[str, _in(choices.SAMPLERS, "sampler"), _schema(choices.SAMPLERS)]
TimestepsName = Annotated[str, _in(choices.TIMESTEPS, "timesteps"), _schema(choices.TIMESTEPS)]
GuidanceScheduleName = Annotated[
    str, _in(choices.GUIDANCE_SCHEDULES, "schedule of guidance"), _schema(choices.GUIDANCE_SCHEDULES)
]
ThresholdName = Annotated[str, _in(choices.THRESHOLDS, "threshold"), _schema(choices.THRESHOLDS)]


class Section(BaseModel):
    """An immutable section that rejects unknown keys and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
