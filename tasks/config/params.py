"""The typed model of `params.yaml`: every knob of a run, checked once at the edge.

`load(path)` returns a `Params` or raises `UserError` with one sentence that names the key and what is allowed.
Inside the pipeline the values are trusted.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.data import Card, Curate, Extract, Mannequin, Raw, Shard
from tasks.config.evaluation import Fidelity, Memorization, Sample, Sampling, Tracking, Weights
from tasks.config.operations import Generate, Limits, Notify, Retrain, Services
from tasks.config.section import Section
from tasks.config.training import Pictures, Poses, Train

__all__ = [
    "Card", "Curate", "Extract", "Fidelity", "Generate", "Limits", "Mannequin", "Memorization", "Params", "Pictures", "Poses",
    "Raw", "Sample", "Sampling", "Section", "Shard", "Tracking", "Train", "Weights", "load", "parse", "set_value", "set_values",
]  # fmt: skip


class Params(Section):
    """All of `params.yaml`."""

    raw: Raw
    mannequin: Mannequin
    extract: Extract
    curate: Curate
    shard: Shard
    card: Card = Card()
    poses: Poses
    pictures: Pictures
    sample: Sampling
    memorization: Memorization
    fidelity: Fidelity
    tracking: Tracking
    services: Services = Services()
    limits: Limits = Limits()
    retrain: Retrain = Retrain()
    generate: Generate = Generate()
    notify: Notify = Notify()

    @model_validator(mode="after")
    def _sizes(self) -> Params:
        if self.pictures.size > self.shard.size:
            raise ValueError(f"pictures.size must be at most shard.size ({self.shard.size}), got {self.pictures.size}")
        return self


def validation_sentence(error: dict[str, Any], name: str) -> str:
    """One of pydantic's errors as a sentence that names the key."""
    key = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{name}: {key} is not a known key."
    if error["type"] == "missing":
        return f"{name}: {key} is missing."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "value_error":
        return f"{name}: {key}: {message}."
    return f"{name}: {key} {message}, got {error['input']!r}."


def parse(text: str, name: str = "params.yaml") -> Params:
    """The parameters in a YAML 1.2 text (the dialect DVC reads); raises UserError naming the first wrong key."""
    try:
        data = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise UserError(f"{name} is not valid YAML{line}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{name} must be a mapping of sections, got {type(data).__name__}.")
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), name)) from error


def load(path: Path) -> Params:
    """The parameters in the file; raises UserError if it is missing, not YAML, or says something impossible."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    return parse(path.read_text(encoding="utf-8"), path.name)


def set_value(path: Path, key: str, value: Any) -> None:
    """Write one dotted key into the file, as `set_values` does."""
    set_values(path, {key: value})


def set_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write dotted keys into the file, comments kept; all are refused with UserError if the result is not valid."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = yaml.load(path.read_text(encoding="utf-8"))
    changed = False
    for key, value in values.items():
        *sections, last = key.split(".")
        node = document
        for section in sections:
            node = node.setdefault(section, {})
        if node.get(last) != value:
            node[last], changed = value, True
    if not changed:
        return
    text = io.StringIO()
    yaml.dump(document, text)
    parse(text.getvalue(), path.name)
    files.write_bytes(path, text.getvalue().encode())
