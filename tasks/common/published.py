"""Published models: the packages diffusers, transformers, peft and accelerate, and the digest of a folder.

The packages are the optional extra `foreign`. They are imported here alone, when they are needed, and never use a network.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

from tasks.common.errors import UserError

OFFLINE = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")  # constants of huggingface_hub, on which all of them rely
READ = frozenset({".safetensors", ".json", ".txt", ".model"})  # what the digest covers, and all that is read


def package(name: str) -> Any:
    """The package `diffusers`, `transformers`, `peft` or `accelerate`.

    Raises UserError, with a sentence that says what to do, without it.
    """
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


def digest(path: Path) -> str:
    """The sha256 of a folder: of the lines `<sha256 of a file>  <name>` of all files that may be read, sorted by name."""
    lines = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.suffix in READ and file.is_file() and not any(part.startswith(".") for part in name.parts):
            with file.open("rb") as stream:
                lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name.as_posix()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
