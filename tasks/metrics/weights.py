"""Weights of a published network from a file or a URL, checked by sha256 and read without executing anything.

Two formats are read. A safetensors file holds data only. A `.pth` file, the format of most published networks, is a pickle,
which is a program; torch's restricted reader loads tensors in plain containers from it and nothing else. Everything else,
such as a pickled module or a TorchScript archive, is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Weights

CHUNK = 1 << 20  # bytes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, target: Path) -> None:
    """Download a URL to a file, under a temporary name until it is complete."""
    try:
        with (
            urllib.request.urlopen(url, timeout=30) as reply,
            files.new_file(target) as temporary,
            temporary.open("wb") as file,
        ):
            size = int(reply.headers.get("Content-Length") or 0) or None
            with tqdm(total=size, desc=f"download {url}", unit="B", unit_scale=True, mininterval=2) as bar:
                while chunk := reply.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(f"{url} could not be downloaded: {error}.") from error


def locate(weights: Weights, root: Path) -> Path:
    """The file with these weights, downloaded once if `source` is a URL. Raises UserError if its sha256 does not match."""
    is_url = "://" in weights.source
    path = root / paths.NETWORK_WEIGHTS / weights.sha256 if is_url else root / weights.source
    if is_url and not path.is_file():
        _download(weights.source, path)
    if not path.is_file():
        raise UserError(f"{weights.source} does not exist.")
    digest = _sha256(path)
    if digest != weights.sha256:
        if is_url:
            path.unlink()  # the next try downloads it again
        raise UserError(f"{weights.source}: sha256 mismatch, expected {weights.sha256}, got {digest}.")
    return path


def _is_safetensors(path: Path) -> bool:
    """Whether the content is that of a safetensors file: 8 bytes of length, then a JSON header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def read(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU. Errors call the file `name`.

    Raises UserError if it is neither safetensors nor a `.pth` file of tensors.
    """
    try:
        if _is_safetensors(path):
            loaded: dict[str, Tensor] = load_file(path)
            return loaded
        # weights_only selects the restricted reader, which executes no code
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{name} is neither a safetensors file nor a .pth file that holds tensors only.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{name} does not hold tensors by name.")
    return dict(tensors)
