"""Is a generated pose a human body? Bone lengths and the order of left and right, beside the training data's."""

from __future__ import annotations

import numpy as np

from tasks.common.skeleton import INDEX, LANDMARKS, LIMB_BONES


def bone_name(bone: tuple[int, int]) -> str:
    """For example left_shoulder-left_elbow."""
    return f"{LANDMARKS[bone[0]]}-{LANDMARKS[bone[1]]}"


def bone_lengths(poses: np.ndarray) -> np.ndarray:
    """Lengths of LIMB_BONES, `[n, bones]`, in the unit of `poses` `[n, 33, 3]` (torso lengths)."""
    ends = np.array(LIMB_BONES)
    return np.linalg.norm(poses[:, ends[:, 0]] - poses[:, ends[:, 1]], axis=-1)


def sides_mixed(poses: np.ndarray) -> np.ndarray:
    """Which poses `[n, 33, 3]` have left and right mixed up: bool `[n]`.

    From right to left, hips and shoulders must point the same way (a torso twists by less than 90 degrees), and with
    up along the torso and the face forward, left must be left: the triple product left x up . forward is positive in
    MediaPipe's axes (x right, y down, z away). A mirrored body whose names were not swapped fails the second.
    """
    left, right, middle = (
        lambda name: poses[:, INDEX[f"left_{name}"]],
        lambda name: poses[:, INDEX[f"right_{name}"]],
        lambda name: (poses[:, INDEX[f"left_{name}"]] + poses[:, INDEX[f"right_{name}"]]) / 2,
    )
    across_hips = left("hip") - right("hip")
    across_shoulders = left("shoulder") - right("shoulder")
    up = middle("shoulder") - middle("hip")
    forward = poses[:, INDEX["nose"]] - middle("ear")
    twisted = (across_hips * across_shoulders).sum(axis=-1) < 0
    handedness = (np.cross(across_shoulders, up) * forward).sum(axis=-1)
    return twisted | (handedness < 0)
