"""Is a motion physically plausible? Foot skating, jitter, and bones that change their length.

All figures are per clip, of clips `[n, frames, 33, 3]` in torso lengths with y down, and mean something only beside those of
real motion at the same frame rate.
"""

from __future__ import annotations

import numpy as np

from tasks.common.motion import in_place
from tasks.common.skeleton import INDEX, LIMB_BONES, LIMBS

CONTACT = 0.12  # torso lengths above the floor (about 6 cm) below which the ball of a foot counts as standing
STILL = 0.8  # torso lengths per second of vertical speed below which it does
_TOES = [INDEX["left_foot_index"], INDEX["right_foot_index"]]


def foot_skating(clips: np.ndarray, rate: float) -> np.ndarray:
    """Mean horizontal speed of the tips of the feet while they stand on the floor, torso lengths per second: `[n]`.

    The floor of a clip is the lowest place of its feet. A foot stands in a step between two frames if in both it is within
    CONTACT of the floor and moves up or down more slowly than STILL. NaN if no foot ever stands.
    """
    toes = clips[:, :, _TOES].astype(np.float64)
    height = toes[..., 1].max(axis=(1, 2), keepdims=True) - toes[..., 1]
    speed = np.diff(toes, axis=1) * rate
    stands = (np.maximum(height[:, 1:], height[:, :-1]) < CONTACT) & (np.abs(speed[..., 1]) < STILL)
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
