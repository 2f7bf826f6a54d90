"""Tensors and JSON in one safetensors file. A kill, a power failure or a full disk leaves the old file or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks.common import files
from tasks.common.errors import FULL, DataError, UserError


class NotWritten(UserError):
    """A checkpoint could not be written. The file that was there before is unchanged."""


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], key: str = "json") -> None:
    """Write `tensors` (name -> tensor) and `meta` (JSON values) to `path`, atomically and durably.

    `key`: of the JSON in the file's metadata; `load` expects the default.

    Raises NotWritten if the disk is full or the file cannot be written. The message says what is still there.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with files.new_file(path, durable=True) as temporary:
            save_file(whole, temporary, {key: json.dumps(meta, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL)
        reason = "the disk is full" if full else str(error)
        others = sorted(other.name for other in path.parent.glob("*.safetensors"))
        left = f"{others[-1]} is intact" if others else "there was none before"
        raise NotWritten(f"{path} was not written: {reason}; {left}.", code=1) from error


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON of `path`. Raises DataError if it is not a whole safetensors file that `save` wrote."""
    with _opened(path, device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["json"])


def about(path: Path) -> dict[str, Any]:
    """Only the JSON of `path`. Raises DataError as `load` does."""
    with _opened(path, "cpu") as file:
        return dict(json.loads(file.metadata()["json"]))


@contextmanager
def _opened(path: Path, device: str | torch.device) -> Iterator[Any]:
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a checkpoint of this project, or it is damaged ({error}).") from error
