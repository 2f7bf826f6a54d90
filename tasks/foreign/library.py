"""The packages diffusers, transformers and peft: imported when they are needed, and never with a network.

They are the optional extra `foreign`. Nothing outside of `tasks/foreign` imports them, apart from the autoencoders of
`tasks/models/published_codec.py`.
"""

from __future__ import annotations

import importlib
from typing import Any

from tasks.common.errors import UserError

OFFLINE = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")  # constants of huggingface_hub, on which all of them rely


def package(name: str) -> Any:
    """The package `diffusers`, `transformers` or `peft`. Raises UserError, with a sentence that says what to do, without it."""
    try:
        constants = importlib.import_module("huggingface_hub.constants")
        for constant in OFFLINE:
            setattr(constants, constant, True)
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"A published model needs the package {name}: install it with  pip install 'contrapposto[foreign]'."
        ) from error
    if name in ("diffusers", "transformers"):
        importlib.import_module(f"{name}.utils.logging").disable_progress_bar()
    return module
