"""The file of a sweep. Reading it does not import Prefect, whose settings are those of the moment at which it is imported."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import edit, parse, read_text, validation_sentence
from tasks.config.section import Positive, Section

MOST = 256  # experiments


class Sweep(Section):
    """What to run."""

    workers: Positive = 1
    grid: dict[str, list[Any]] = Field(default={})
    runs: list[dict[str, Any]] = Field(default=[])

    @model_validator(mode="after")
    def _has_one_of_both(self) -> Sweep:
        if bool(self.grid) == bool(self.runs):
            raise ValueError("give a grid or runs")
        if not 1 <= len(self.variations) <= MOST:
            raise ValueError(f"there must be 1 to {MOST} experiments, got {len(self.variations)}")
        return self

    @property
    def variations(self) -> list[dict[str, Any]]:
        """Dotted keys and values of each experiment."""
        if self.runs:
            return self.runs
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


def read(root: Path, file: Path) -> Sweep:
    """The sweep in a file, every experiment of which has valid parameters. Raises UserError that says what is wrong."""
    text = read_text(file)
    data: Any = {}
    try:
        data = YAML(typ="safe", pure=True).load(text) or {}
        sweep = Sweep.model_validate(data)
    except YAMLError as error:
        raise UserError(f"{file.name} is not valid YAML.") from error
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), file.name, data)) from error
    before = read_text(root / paths.PARAMS)
    for variation in sweep.variations:
        parse(edit(before, variation), f"{file.name}, {words(variation)}")
    return sweep


def words(variation: dict[str, Any]) -> str:
    """An experiment in words, such as `poses.recipe=ddpm poses.seed=1`."""
    return " ".join(f"{key}={value}" for key, value in variation.items())


def override(key: str, value: Any) -> str:
    """A parameter as an argument of `dvc exp run --set-param`, which has the syntax of Hydra: keys are not quoted."""
    return f"{key}={_hydra(value)}"


def _hydra(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return json.dumps(value)
