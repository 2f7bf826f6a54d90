"""Changes of `params.yaml` as a flow parameter: its typed model, in which every key is optional.

Prefect keeps the JSON schema of a deployment's parameters and refuses, before a run is created, parameters that do not fit it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model

from tasks.common.errors import UserError
from tasks.config.params import Params, validation_sentence
from tasks.config.section import Section


def _optional(section: type[Section]) -> type[BaseModel]:
    """The model of a section with every key optional; the bounds of each value stay."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = _optional(annotation)
        for bound in field.metadata:
            annotation = Annotated[annotation, copy.copy(bound)]
        fields[name] = (annotation, None)
    # Without Section's own validators: they compare several keys, some of which are missing.
    return create_model(section.__name__, __config__=section.model_config, __doc__=section.__doc__, **fields)


_Optional: Any = _optional(Params)


class Changes(_Optional):  # type: ignore[misc] # made at run time
    """Keys of params.yaml and their new values."""


def values(changes: BaseModel) -> dict[str, Any]:
    """The given keys, dotted, and their values."""
    flat: dict[str, Any] = {}
    for key in changes.model_fields_set:
        value = getattr(changes, key)
        inner = values(value) if isinstance(value, BaseModel) else {}
        flat |= {f"{key}.{rest}": leaf for rest, leaf in inner.items()} or {key: value}
    return flat


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections among the alternatives of a key's type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        if get_origin(annotation) is not dict:
            yield from _sections(argument)


def _check_ends_at_a_key(key: str) -> None:
    """Raise UserError if a dotted key goes on below a value, such as `raw.parts.studio`: all other parts would be lost."""
    section: type[Section] = Params
    names = key.split(".")
    for number, name in enumerate(names[:-1], 1):
        if name not in section.model_fields:
            return  # the validation says so
        inner = next(_sections(section.model_fields[name].annotation), None)
        if inner is None:
            whole = ".".join(names[:number])
            raise UserError(f"{whole} can only be set as a whole, as in '{whole}={{{'.'.join(names[number:])}: ...}}'.")
        section = inner


def parse(assignments: Sequence[str]) -> Changes:
    """The changes in texts such as `poses.seed=1`, with values in YAML. Raises UserError if a key or value does not fit."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"A change is KEY=VALUE, such as poses.seed=1; got {assignment!r}.")
        _check_ends_at_a_key(key)
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise UserError(f"The value of {key} is not valid YAML: {text!r}.") from error
        *sections, last = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"{key} and {section} cannot both be changed.")
        node[last] = value
    try:
        changes: Changes = Changes.model_validate(nested)
        return changes
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), "params.yaml", nested)) from error
