"""Pictures as bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode_png(picture: np.ndarray) -> bytes:
    """One RGB picture, uint8 `[height, width, 3]`, as PNG bytes (lossless)."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=6)
    return stream.getvalue()
