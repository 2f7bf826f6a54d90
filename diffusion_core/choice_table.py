"""What the tables of methods have in common: entries with a title, a call and a paper, and parameters with bounds.

`training_choices` and `choices` hold the tables. Reading them does not import torch: their entries import what they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

AUTO = "auto"  # instead of a number: take what was measured of the data
Value = float | str | None  # of a parameter: a number, AUTO, or None for the default


@dataclass(frozen=True)
class Parameter:
    """A number that a method has besides its name, in [low, high]. `default` None: it follows from the data's shape."""

    about: str
    default: float | None
    low: float
    high: float
    integer: bool = False
    measured: bool = False  # whether it may be AUTO


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An entry of a table: what the method is called, how `diffusion_core` makes it, its paper and its parameters."""

    title: str
    code: str
    paper: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


def core(module: str) -> Any:
    """A module of diffusion_core by its dotted name, imported when it is needed."""
    return import_module(f"diffusion_core.{module}")


def check_name(table: Mapping[str, object], kind: str, name: str) -> str:
    """The name itself. Raises ValueError, which lists the names of the table, if it has no such name."""
    if name not in table:
        raise ValueError(f"there is no {kind} {name!r}; choose one of {', '.join(table)}")
    return name


def check_parameters(parameters: Mapping[str, Parameter], what: str, given: Mapping[str, Value]) -> None:
    """Raise ValueError if `what`, such as "recipe edm", has no such parameter or not this value."""
    for name, value in given.items():
        if name not in parameters:
            known = f"it has {', '.join(parameters)}" if parameters else "it has none"
            raise ValueError(f"{what} has no parameter {name}; {known}")
        parameter = parameters[name]
        if value is None or (value == AUTO and parameter.measured):
            continue
        if isinstance(value, str):
            auto = " or auto" if parameter.measured else ""
            raise ValueError(f"{name} of {what} must be a number{auto}, got {value!r}")
        if not parameter.low <= value <= parameter.high or (parameter.integer and value != int(value)):
            kind = "an integer" if parameter.integer else "a number"
            raise ValueError(
                f"{name} of {what} must be {kind} from {parameter.low:g} to {parameter.high:g}, got {value:g}"
            )


def numbers(parameters: Mapping[str, Parameter], given: Mapping[str, Value]) -> dict[str, float]:
    """The given numbers, for the method's constructor; those that are None are left out, integers are int."""
    return {
        name: int(value) if parameters[name].integer else float(value)
        for name, value in given.items()
        if value is not None
    }
