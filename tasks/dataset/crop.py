"""A square picture around a person. It is never stretched; outside the picture it shows a blurred reflection."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

BLUR = 1 / 12  # of the square's side: a reflected hand must not look like a second hand


def square(landmarks: np.ndarray, margin: float) -> tuple[int, int, int]:
    """The square (x0, y0, side) in pixels around image landmarks `[33, 2]` (pixels), or around those of several frames
    `[frames, 33, 2]`.

    The landmarks end at the eyes, so a disc around the nose, twice as wide as the nose-to-ear distance and at least an
    eighth of the person, stands for the head. `margin` is added on each side, as a fraction of the longer side.
    """
    frames = landmarks.reshape(-1, *landmarks.shape[-2:])
    low, high = frames.min(axis=1), frames.max(axis=1)
    nose = frames[:, 0]
    ears = np.abs(frames[:, [7, 8]] - nose[:, None]).max(axis=(1, 2))
    head = np.maximum(2 * ears, (high - low).max(axis=1) / 8)[:, None]
    low, high = np.minimum(low, nose - head).min(axis=0), np.maximum(high, nose + head).max(axis=0)
    side = max(1, round(float((high - low).max()) * (1 + 2 * margin)))
    x0, y0 = np.round((low + high) / 2 - side / 2).astype(int)
    return int(x0), int(y0), side


def real_part(height: int, width: int, x0: int, y0: int, side: int) -> tuple[float, float, float, float] | None:
    """Which part of the square at (x0, y0) a picture of this size covers: left, top, right, bottom as shares of the side.

    None if it covers all of it.
    """
    left, top, right, bottom = max(0, -x0), max(0, -y0), min(side, width - x0), min(side, height - y0)
    if (left, top, right, bottom) == (0, 0, side, side):
        return None
    return left / side, top / side, right / side, bottom / side


def crop(picture: np.ndarray, x0: int, y0: int, side: int, size: int) -> np.ndarray:
    """The square of `picture` (uint8 `[height, width, 3]`) at (x0, y0), resized to uint8 `[size, size, 3]`."""
    height, width = picture.shape[:2]
    rows = _reflect(np.arange(y0, y0 + side), height)
    columns = _reflect(np.arange(x0, x0 + side), width)
    region = Image.fromarray(np.ascontiguousarray(picture[rows][:, columns]))
    left, top, right, bottom = max(0, -x0), max(0, -y0), min(side, width - x0), min(side, height - y0)
    if (left, top, right, bottom) != (0, 0, side, side):
        inside = region.crop((left, top, right, bottom))
        region = region.filter(ImageFilter.GaussianBlur(side * BLUR))
        region.paste(inside, (left, top))
    return np.asarray(region.resize((size, size), Image.Resampling.LANCZOS))


def _reflect(index: np.ndarray, length: int) -> np.ndarray:
    """Indices outside 0..length-1, reflected at the borders as often as needed."""
    if length == 1:
        return np.zeros_like(index)
    folded: np.ndarray = np.mod(index, 2 * (length - 1))
    return np.where(folded < length, folded, 2 * (length - 1) - folded)
