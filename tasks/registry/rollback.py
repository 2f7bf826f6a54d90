"""`python -m tasks rollback`: exchange the champions and the previous champions."""

from __future__ import annotations

import logging
from pathlib import Path

from tasks.config.params import Params
from tasks.registry import model_registry
from tasks.registry.tracking import Store

log = logging.getLogger(__name__)


def run(params: Params, root: Path) -> None:
    """Exchange the aliases of all models. Raises UserError and changes nothing if a model has no previous champion."""
    for model, (now, before) in model_registry.rollback(Store(params.tracking, root)).items():
        log.info(f"{model}: version {now} is the champion again, version {before} is the previous one")
