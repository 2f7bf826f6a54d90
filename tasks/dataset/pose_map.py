"""Pose maps: a pose drawn as soft bones on the square of its picture. They condition the picture model.

The square follows from the pose by the rule that cuts the pictures (`crop.square`), so a generated pose without a picture
gets the map that its picture would have. In a clip the square follows the hips and has one size, which holds the person in
every frame.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from torch import Tensor

from tasks.common import motion
from tasks.dataset.crop import square

# The bones of each channel: left arm, right arm, left leg, right leg, trunk, head (nose, ears, mouth).
PARTS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((11, 13), (13, 15), (15, 19)),
    ((12, 14), (14, 16), (16, 20)),
    ((23, 25), (25, 27), (27, 31)),
    ((24, 26), (26, 28), (28, 32)),
    ((11, 12), (12, 24), (24, 23), (23, 11)),
    ((0, 7), (0, 8), (9, 10)),
)
CHANNELS = len(PARTS)
MIRRORED = (1, 0, 3, 2, 4, 5)  # the channel that replaces each one in a mirror image
WIDTH = 0.03  # standard deviation of a bone's profile, as a fraction of the square's side
FINE = 1000  # pixels per torso, since `square` works in whole pixels
AT_ONCE = 32  # poses drawn at a time, so that the intermediate results stay in the cache


def places(poses: np.ndarray, margin: float) -> np.ndarray:
    """Positions of the joints of poses `[n, 33, 3]` in the squares of their pictures: x, y in 0..1, `[n, 33, 2]`.

    Of clips `[n, frames, 33, 3]`: `[n, frames, 33, 2]`.
    """
    placed = motion.in_place(poses) if poses.ndim == 4 else poses
    flat = placed[..., :2].astype(np.float64) * FINE
    boxes = np.array([square(one, margin) for one in flat], np.float64).reshape(-1, *[1] * (poses.ndim - 2), 3)
    return (flat - boxes[..., :2]) / boxes[..., 2:]


def pose_map(poses: np.ndarray, size: int, margin: float) -> Tensor:
    """Maps float32 `[n, CHANNELS, size, size]` in 0..1 of poses `[n, 33, 3]` (torso = 1).

    Of clips `[n, frames, 33, 3]`: `[n, frames, CHANNELS, size, size]`. A channel is exp(-d^2 / 2 w^2) with d the distance to
    its nearest bone, seen from the front, and w = WIDTH.
    """
    points = torch.from_numpy(places(poses, margin)).float().flatten(0, -3)
    out = torch.empty(len(points), CHANNELS, size, size)
    for some, maps in zip(points.split(AT_ONCE), out.split(AT_ONCE), strict=True):
        for channel, bones in enumerate(PARTS):
            distances = (_squared_distance(size, some[:, a], some[:, b]) for a, b in bones)
            torch.exp(reduce(torch.minimum, distances) / (-2 * WIDTH**2), out=maps[:, channel])
    return out.reshape(*poses.shape[:-2], CHANNELS, size, size)


def _squared_distance(size: int, a: Tensor, b: Tensor) -> Tensor:
    """Squared distance `[n, size, size]` from the pixels of the unit square to the segments from a `[n, 2]` to b `[n, 2]`."""
    centres = (torch.arange(size) + 0.5) / size
    x, y = (centres - a[:, :1])[:, None, :], (centres - a[:, 1:])[:, :, None]  # from a: [n, 1, size], [n, size, 1]
    along = b - a
    along_x, along_y = along.T[..., None, None]
    squared_length = along.square().sum(-1).clamp(min=1e-12)[:, None, None]
    share = (x * (along_x / squared_length) + y * (along_y / squared_length)).clamp_(0, 1)
    squared_distance: Tensor = (x - share * along_x).square_() + (y - share * along_y).square_()
    return squared_distance
