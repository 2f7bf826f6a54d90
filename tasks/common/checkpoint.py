"""Tensors and JSON in one safetensors file, written so that a kill or a full disk leaves either the old file or the new one."""

from __future__ import annotations

import errno
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

from tasks.common.errors import DataError, UserError


class NotWritten(UserError):
    """A checkpoint could not be written; what was there before is as it was."""


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` (name -> tensor) and `meta` (JSON values) as `path`, on disk before the name changes hands.

    Raises NotWritten, which says what is still there, if the disk is full or the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, temporary, {"json": json.dumps(meta, sort_keys=True)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
        why = "the disk is full" if full else str(error)
        before = sorted(other.name for other in path.parent.glob("*.safetensors"))
        left = f"{before[-1]} is intact" if before else "there was none before"
        raise NotWritten(f"{path} was not written, for {why}; {left}.", code=1) from error


def _sync_folder(folder: Path) -> None:
    """A new name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON of `path`; DataError if it is not a whole safetensors file that `save` wrote."""
    with _opened(path, device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["json"])


def about(path: Path) -> dict[str, Any]:
    """Only the JSON of `path`; DataError as for `load`."""
    with _opened(path, "cpu") as file:
        return json.loads(file.metadata()["json"])


@contextmanager
def _opened(path: Path, device: str | torch.device) -> Iterator[Any]:
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a checkpoint of this project, or it is damaged ({error}).") from error
