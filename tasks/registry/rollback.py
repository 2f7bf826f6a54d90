"""`python -m tasks rollback [motion|video]`: exchange the champions and the previous champions.

Without an argument those of poses and pictures, which are promoted together; with `motion` or `video` that one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.registry import model_registry
from tasks.registry.tracking import Store

log = logging.getLogger(__name__)


def run(params: Params, root: Path, model: str | None = None) -> None:
    """Exchange the aliases. Raises UserError and changes nothing if a model has no previous champion."""
    if model is not None and model not in model_registry.ALONE:
        raise UserError(f"rollback takes no argument or {' or '.join(model_registry.ALONE)}, not {model!r}.")
    together = model_registry.PIPELINE if model is None else (model,)
    for name, (now, before) in model_registry.rollback(Store(params.tracking, root), together).items():
        log.info(f"{name}: version {now} is the champion again, version {before} is the previous one")
