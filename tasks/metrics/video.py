"""How clips of pictures change over time. The figures mean something only beside those of real clips at the same frame rate."""

from __future__ import annotations

import numpy as np


def change(clips: np.ndarray) -> np.ndarray:
    """Mean absolute difference between a pixel and the same one a frame later: `[n]` in 0..1.

    Of clips uint8 `[n, frames, s, s, 3]`.
    """
    difference: np.ndarray = np.abs(np.diff(clips.astype(np.float32) / 255, axis=1)).mean(axis=(1, 2, 3, 4))
    return difference


def flicker(clips: np.ndarray) -> np.ndarray:
    """Mean absolute second difference of pixels over time, `[n]` in 0..1.

    0 for steady change, large if frames do not belong together.
    """
    second: np.ndarray = np.abs(np.diff(clips.astype(np.float32) / 255, n=2, axis=1)).mean(axis=(1, 2, 3, 4))
    return second
