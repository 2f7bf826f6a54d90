"""Changes of `params.yaml` as a flow parameter: its typed model with every key left out if one likes.

Prefect keeps the JSON schema of a deployment's parameters and refuses, before a run is created, what does not fit it.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

from pydantic import BaseModel, create_model

from tasks.config.params import Params
from tasks.config.section import Section


def _optional(section: type[Section]) -> type[BaseModel]:
    """The model of a section in which any key may be missing; the bounds of each stay."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = _optional(annotation)
        for bound in field.metadata:
            annotation = Annotated[annotation, copy.copy(bound)]
        fields[name] = (annotation, None)
    # without Section's own validators: they compare keys of which some are not given here
    return create_model(section.__name__, __config__=section.model_config, __doc__=section.__doc__, **fields)


_Optional: Any = _optional(Params)


class Changes(_Optional):
    """Keys of params.yaml and the values that they shall have."""


def values(changes: BaseModel) -> dict[str, Any]:
    """The keys that were given, dotted, and their values."""
    found: dict[str, Any] = {}
    for key in changes.model_fields_set:
        value = getattr(changes, key)
        inner = values(value) if isinstance(value, BaseModel) else {}
        found |= {f"{key}.{below}": what for below, what in inner.items()} or {key: value}
    return found
