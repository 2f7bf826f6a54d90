"""A picture's thumbnail: what the alignment compares (see `alignment`).

Grey, 48 pixels along the longer side, in its proportions. In the middle of a square; the rest of the square is 0.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 48  # pixels of the square


def content(width: int, height: int) -> tuple[int, int]:
    """Width and height, in pixels of the square, of the thumbnail of a picture of this size; both even, at least 2.

    Even, so that the thumbnail is exactly in the middle.
    """
    longer = max(width, height, 1)
    return max(2, SIDE * width // longer // 2 * 2), max(2, SIDE * height // longer // 2 * 2)


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """The thumbnail, uint8 `[48, 48]`, of a picture, RGB or grey, uint8 `[height, width(, 3)]`.

    At the shorter sides up to two thumbnail pixels are cut off, so that nothing is stretched.
    """
    image = Image.fromarray(picture).convert("L")
    size = content(*image.size)
    scale = max(image.size) / SIDE
    kept = [min(float(old), new * scale) for old, new in zip(image.size, size, strict=True)]
    left, top = ((old - new) / 2 for old, new in zip(image.size, kept, strict=True))
    box = (left, top, left + kept[0], top + kept[1])
    filtered = Image.Resampling.BOX if scale > 1 else Image.Resampling.BICUBIC
    small = image.resize(size, filtered, box=box, reducing_gap=None)
    square: np.ndarray = np.zeros((SIDE, SIDE), np.uint8)
    x, y = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    square[y : y + size[1], x : x + size[0]] = np.asarray(small)
    return square
