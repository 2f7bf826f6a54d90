"""Pictures: as bytes, and smaller."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode_png(picture: np.ndarray) -> bytes:
    """One RGB picture, uint8 `[height, width, 3]`, as PNG bytes (lossless)."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def area_average(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture uint8 `[side, side, 3]` at `size <= side` pixels: each is the mean of the area that it covers.

    Computed exactly, with halves rounded up, so that it is the same on every machine.
    """
    side = len(picture)
    ratio, rest = divmod(side, size)
    if not rest and ratio.bit_count() == 1:
        return np.asarray(Image.fromarray(picture).reduce(ratio))  # fast, and exact for powers of two only
    # In units of 1 / size of a pixel, old pixels are `size` wide and new ones `side`; entry (j, i) is the overlap.
    old, new = np.arange(side) * size, np.arange(size)[:, None] * side
    overlap = (np.minimum(old + size, new + side) - np.maximum(old, new)).clip(min=0).astype(np.float64)
    # Sums of whole numbers, which float64 adds without error.
    rows = (overlap @ picture.reshape(side, -1).astype(np.float64)).reshape(size, side, 3)
    sums = (overlap @ rows).astype(np.int64)
    return ((2 * sums + side**2) // (2 * side**2)).astype(np.uint8)
