"""Motion: sequences of poses over time, and the forms in which they are stored and learned.

A clip is an array `[..., frames, 33, 3]` in torso lengths (one scale for the whole clip), with the axes of
`tasks.common.skeleton`. In its first frame the middle of the hips is at 0 and the person faces forward; from there it moves as
the person does. The networks see its `features`, in which the path of the hips is apart from the poses.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.common.skeleton import INDEX, torso_length

LEFT_HIP, RIGHT_HIP = INDEX["left_hip"], INDEX["right_hip"]
PATH = RIGHT_HIP  # the place in the features that holds the path of the hips
PATH_SCALE = 0.5  # of the path in the features: people go farther than their limbs reach

# The landmarks that are one token of the motion model: head, trunk and limbs. With a token for each rigid part a step took
# twice as long.
PARTS: tuple[tuple[int, ...], ...] = (
    tuple(range(11)),  # the head
    (11, 12, 23, 24),  # shoulders and hips
    (13, 15, 17, 19, 21), (14, 16, 18, 20, 22),  # arms
    (25, 27, 29, 31), (26, 28, 30, 32),  # legs
)  # fmt: skip


def runs(times: np.ndarray, gap: float) -> Iterator[np.ndarray]:
    """Runs of ascending times without a gap of more than `gap` seconds, as index arrays into `times`."""
    order = np.argsort(times, kind="stable")
    order = order[np.append(True, np.diff(times[order]) > 0)]  # one row per time
    yield from np.split(order, np.flatnonzero(np.diff(times[order]) > gap) + 1)


def resampled(poses: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values `[n, ...]` at `times` `[n]`, linearly interpolated to the times `at`: `[len(at), ...]`."""
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    share = (at - times[after - 1]) / (times[after] - times[after - 1])
    share = share.reshape(-1, *[1] * (poses.ndim - 1))
    interpolated: np.ndarray = poses[after - 1] + share * (poses[after] - poses[after - 1])
    return interpolated


def middle_of_hips(poses: np.ndarray) -> np.ndarray:
    """The middle of the hips of poses `[..., 33, 3]`: `[..., 3]`."""
    middle: np.ndarray = (poses[..., LEFT_HIP, :] + poses[..., RIGHT_HIP, :]) / 2
    return middle


def yaw(poses: np.ndarray) -> np.ndarray:
    """How far poses `[..., 33, 3]` are turned about the vertical: radians `[...]`, 0 for hips and shoulders along x."""
    across = poses[..., [11, 23], :].sum(axis=-2) - poses[..., [12, 24], :].sum(axis=-2)
    angle: np.ndarray = np.arctan2(across[..., 2], across[..., 0])
    return angle


def turned(poses: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Poses `[n, ..., 33, 3]` turned about the vertical through 0 by `-angle` `[n]`, so that the yaw `angle` becomes 0."""
    cosine, sine = (f(angle).reshape(-1, *[1] * (poses.ndim - 2)) for f in (np.cos, np.sin))
    x, y, z = np.moveaxis(poses, -1, 0)
    result: np.ndarray = np.stack([cosine * x + sine * z, y, cosine * z - sine * x], axis=-1).astype(poses.dtype)
    return result


def canonical(clips: np.ndarray, frame: int = 0) -> np.ndarray:
    """Clips `[n, frames, 33, 3]` moved and turned so that in this frame the hips are at 0 and the person faces forward."""
    moved = clips - middle_of_hips(clips[:, frame])[:, None, None]
    return turned(moved, yaw(moved[:, frame]))


def scale(clip: np.ndarray) -> float:
    """The median length of the torso in a clip `[frames, 33, 3]`."""
    return float(np.median(torso_length(clip)))


def features(clips: np.ndarray) -> np.ndarray:
    """Clips `[..., 33, 3]` as the networks see them: all joints relative to the middle of the hips, and their path.

    In the place of the left hip is half the vector from the right hip to the left one, in the place of the right hip (PATH) is
    the middle of the hips times PATH_SCALE. `from_features` is the inverse.
    """
    middle = middle_of_hips(clips)
    result: np.ndarray = clips - middle[..., None, :]
    result[..., PATH, :] = PATH_SCALE * middle
    return result


def from_features(values: np.ndarray) -> np.ndarray:
    """The clips `[..., 33, 3]` with these `features`."""
    middle, half = values[..., PATH, :] / PATH_SCALE, values[..., LEFT_HIP, :]
    result: np.ndarray = values + middle[..., None, :]
    result[..., RIGHT_HIP, :] = middle - half
    return result


def in_place(clips: np.ndarray) -> np.ndarray:
    """Clips `[..., 33, 3]` without the path: the middle of the hips stays at 0."""
    result: np.ndarray = clips - middle_of_hips(clips)[..., None, :]
    return result
