"""The base class of the sections of `params.yaml`, and types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from diffusion_core import choices

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _in(table: Mapping[str, object], kind: str) -> AfterValidator:
    return AfterValidator(partial(choices.check_name, table, kind))


def _schema(table: Mapping[str, object]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(table)})


# Names in the tables of `diffusion_core.choices`.
RecipeName = Annotated[str, _in(choices.RECIPES, "recipe"), _schema(choices.RECIPES)]
WeightName = Annotated[str, _in(choices.WEIGHTS, "weight"), _schema(choices.WEIGHTS)]
LevelsName = Annotated[str, _in(choices.LEVELS, "way to draw levels"), _schema(choices.LEVELS)]
SamplerName = Annotated[str, _in(choices.SAMPLERS, "sampler"), _schema(choices.SAMPLERS)]


class Section(BaseModel):
    """An immutable section that rejects unknown keys and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
