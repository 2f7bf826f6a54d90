"""Tensors and JSON in one safetensors file, written so that a kill leaves either the old file or the new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks.errors import DataError


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` (name -> tensor) and `meta` (JSON values) as `path`, on disk before the name changes hands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, temporary, {"json": json.dumps(meta, sort_keys=True)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON of `path`; DataError if it is not a whole safetensors file that `save` wrote."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            meta = json.loads(file.metadata()["json"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a checkpoint of this project, or it is damaged ({error}).") from error
