"""Presets: files of `presets/` with the keys of `params.yaml` that decide how large a run is.

All presets have the same keys, so that one replaces another completely. `cpu-12min` has the values of `params.yaml` as
delivered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import workspace
from flows.param_changes import Changes, values
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import read_text, set_values, validation_sentence

FOLDER = Path("presets")


@dataclass(frozen=True)
class Preset:
    """A preset: what its first lines say about it, and its dotted keys with their values."""

    name: str
    about: str
    values: dict[str, Any]


def names(root: Path) -> list[str]:
    """The presets of a workspace."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def load(root: Path, name: str) -> Preset:
    """A preset. Raises UserError if there is none of that name, or a key or value does not fit `params.yaml`."""
    if name not in names(root):
        raise UserError(f"There is no preset {name!r}; choose one of {', '.join(names(root))}.")
    path = root / FOLDER / f"{name}.yaml"
    text = read_text(path)
    about = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    data: Any = {}
    try:
        data = YAML(typ="safe", pure=True).load(text)
        changes = Changes.model_validate(data)
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML.") from error
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), str(path), data)) from error
    return Preset(name, " ".join(about), values(changes))


def apply(root: Path, name: str) -> Preset:
    """Write a preset into `params.yaml`, whose comments stay.

    Raises UserError, and writes nothing, if the result would not be valid or a pipeline run holds the workspace.
    """
    preset = load(root, name)
    with workspace.alone(root):
        set_values(root / paths.PARAMS, preset.values)
    return preset
