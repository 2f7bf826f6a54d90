"""Is a generated pose a human body? Bone lengths, and whether left and right are mixed up."""

from __future__ import annotations

import numpy as np

from tasks.common.skeleton import INDEX, LANDMARKS, LIMB_BONES


def bone_name(bone: tuple[int, int]) -> str:
    """For example left_shoulder-left_elbow."""
    return f"{LANDMARKS[bone[0]]}-{LANDMARKS[bone[1]]}"


def bone_lengths(poses: np.ndarray) -> np.ndarray:
    """Lengths of LIMB_BONES, `[n, bones]`, in the unit of `poses` `[n, 33, 3]` (torso lengths)."""
    ends = np.array(LIMB_BONES)
    lengths: np.ndarray = np.linalg.norm(poses[:, ends[:, 0]] - poses[:, ends[:, 1]], axis=-1)
    return lengths


def _sides(poses: np.ndarray, joint: str) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right joint of that name, `[n, 3]` each."""
    return poses[:, INDEX[f"left_{joint}"]], poses[:, INDEX[f"right_{joint}"]]


def sides_mixed(poses: np.ndarray) -> np.ndarray:
    """Which poses `[n, 33, 3]` have left and right mixed up: bool `[n]`.

    A pose fails if hips and shoulders, from right to left, point in opposite directions (a torso twists by less than 90
    degrees). It also fails if left is not left: with up along the torso and the face forward, the triple product
    left x up . forward is positive in MediaPipe's axes (x right, y down, z away). That catches a mirrored body whose
    landmark names were not swapped.
    """
    (left_hip, right_hip), (left_shoulder, right_shoulder) = (_sides(poses, joint) for joint in ("hip", "shoulder"))
    left_ear, right_ear = _sides(poses, "ear")
    across_shoulders = left_shoulder - right_shoulder
    up = (left_shoulder + right_shoulder) / 2 - (left_hip + right_hip) / 2
    forward = poses[:, INDEX["nose"]] - (left_ear + right_ear) / 2
    twisted: np.ndarray = ((left_hip - right_hip) * across_shoulders).sum(axis=-1) < 0
    mirrored: np.ndarray = (np.cross(across_shoulders, up) * forward).sum(axis=-1) < 0
    mixed: np.ndarray = twisted | mirrored
    return mixed
