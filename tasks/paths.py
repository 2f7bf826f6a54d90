"""Where the trained models are, for those who need not load them."""

from __future__ import annotations

import hashlib
from pathlib import Path

MODELS = ("poses", "pictures")
FILE = "model.safetensors"


def folder(root: Path, model: str) -> Path:
    """The folder of a trained model."""
    return root / "artifacts" / model


def sha256(root: Path, model: str) -> str:
    """The digest by which a trained model is known everywhere."""
    return hashlib.sha256((folder(root, model) / FILE).read_bytes()).hexdigest()
