"""Is a motion physically plausible? Foot skating, jitter, and bones that change their length.

All figures are per clip, of clips `[n, frames, 33, 3]` in torso lengths with y down, and mean something only beside those of
real motion at the same frame rate.
"""

from __future__ import annotations

import numpy as np

from tasks.common import foot_lock
from tasks.common.motion import in_place
from tasks.common.skeleton import INDEX, LIMB_BONES, LIMBS

_TOES = [INDEX["left_foot_index"], INDEX["right_foot_index"]]


def foot_skating(clips: np.ndarray, rate: float) -> np.ndarray:
    """Mean horizontal speed of the tips of the feet while they stand on the floor, torso lengths per second: `[n]`.

    `foot_lock.stands` says when a foot stands. NaN if none ever does.
    """
    toes = clips[:, :, _TOES].astype(np.float64)
    speed, stands = np.diff(toes, axis=1) * rate, foot_lock.stands(toes, rate)
    along = np.linalg.norm(speed[..., [0, 2]], axis=-1)
    count = stands.sum(axis=(1, 2))
    total = (along * stands).sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def jitter(clips: np.ndarray, rate: float) -> np.ndarray:
    """Mean length of the third derivative of the 12 limb joints relative to the hips, torso lengths per second cubed: `[n]`."""
    joints = in_place(clips.astype(np.float64))[:, :, list(LIMBS)]
    jerk: np.ndarray = np.linalg.norm(np.diff(joints, n=3, axis=1), axis=-1).mean(axis=(1, 2)) * rate**3
    return jerk


def bone_change(clips: np.ndarray) -> np.ndarray:
    """Standard deviation over time of a bone's length as a share of its mean, mean over LIMB_BONES: `[n]`."""
    ends = np.array(LIMB_BONES)
    lengths = np.linalg.norm(clips[:, :, ends[:, 0]].astype(np.float64) - clips[:, :, ends[:, 1]], axis=-1)
    change: np.ndarray = (lengths.std(axis=1) / lengths.mean(axis=1)).mean(axis=1)
    return change
