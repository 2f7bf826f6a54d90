"""The 33 landmarks of MediaPipe's pose model (BlazePose GHUM): names, bones, sides, and normalised poses.

A pose is an array `[..., 33, 3]` of world landmarks: metres, x to the picture's right, y down, z away from the camera.
`left` and `right` are the person's own left and right.
"""

from __future__ import annotations

import numpy as np

LANDMARKS: tuple[str, ...] = (
    "nose",
    "left_eye_inner", "left_eye", "left_eye_outer",
    "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb", "right_thumb",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_heel", "right_heel", "left_foot_index", "right_foot_index",
)  # fmt: skip
INDEX: dict[str, int] = {name: i for i, name in enumerate(LANDMARKS)}

# The 12 limb joints: the gate checks their mean visibility, and joint errors are measured on them.
LIMBS: tuple[int, ...] = (11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)

# The joints by which poses are compared: limbs, nose, and the tips of hands and feet, which show how wrists and ankles
# are turned.
POSED: tuple[int, ...] = (0, *LIMBS, 19, 20, 31, 32)

# Rigid segments, as MediaPipe draws them.
BONES: tuple[tuple[int, int], ...] = (
    (0, 1), (1, 2), (2, 3), (3, 7), (0, 4), (4, 5), (5, 6), (6, 8), (9, 10),
    (11, 12), (11, 13), (13, 15), (15, 17), (15, 19), (15, 21), (17, 19),
    (12, 14), (14, 16), (16, 18), (16, 20), (16, 22), (18, 20),
    (11, 23), (12, 24), (23, 24), (23, 25), (25, 27), (27, 29), (29, 31), (27, 31),
    (24, 26), (26, 28), (28, 30), (30, 32), (28, 32),
)  # fmt: skip
# The bones whose length is a property of the person, measured in tests and reports.
LIMB_BONES: tuple[tuple[int, int], ...] = (
    (11, 13), (13, 15), (12, 14), (14, 16), (23, 25), (25, 27), (24, 26), (26, 28), (11, 12), (23, 24),
)  # fmt: skip

# mirrored[..., i] = original[..., MIRROR[i]]: left landmarks become right ones.
MIRROR: tuple[int, ...] = tuple(
    INDEX[name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")] for name in LANDMARKS
)


def mirror(world: np.ndarray) -> np.ndarray:
    """The mirrored pose, `[..., 33, 3]`: x changes sign, left and right landmarks are swapped."""
    mirrored: np.ndarray = world[..., MIRROR, :] * np.array([-1.0, 1.0, 1.0], dtype=world.dtype)
    return mirrored


def torso_length(world: np.ndarray) -> np.ndarray:
    """Distance between the middle of the hips and the middle of the shoulders, `[...]`, in the input's unit."""
    hips = (world[..., 23, :] + world[..., 24, :]) / 2
    shoulders = (world[..., 11, :] + world[..., 12, :]) / 2
    length: np.ndarray = np.linalg.norm(shoulders - hips, axis=-1)
    return length


def normalise(world: np.ndarray) -> np.ndarray:
    """Hip-centred, torso-scaled pose, `[..., 33, 3]`: the middle of the hips is 0, the torso has length 1.

    Raises ValueError if a torso has length 0 (the landmarks do not describe a person).
    """
    scale = torso_length(world)
    if not np.all(scale > 1e-6):
        raise ValueError("a pose has a torso of length zero")
    hips = (world[..., 23:24, :] + world[..., 24:25, :]) / 2
    normalised: np.ndarray = (world - hips) / scale[..., None, None]
    return normalised


def face_forward(poses: np.ndarray) -> np.ndarray:
    """Poses `[n, 33, 3]` turned about the vertical so that hips and shoulders point along x: yaw is removed."""
    left, right = poses[:, [11, 23]].sum(axis=1), poses[:, [12, 24]].sum(axis=1)
    across = left - right
    yaw = np.arctan2(across[:, 2], across[:, 0])
    cosine, sine = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x, y, z = np.moveaxis(poses, -1, 0)
    return np.stack([cosine * x + sine * z, y, cosine * z - sine * x], axis=-1).astype(poses.dtype)


def embed(poses: np.ndarray) -> np.ndarray:
    """Normalised poses `[n, 33, 3]` as points, float32 `[n, 51]`: the joints POSED.

    Euclidean distance between two points is the root mean square distance of their joints, in torso lengths.
    """
    joints = poses[:, POSED].reshape(len(poses), 3 * len(POSED)) / np.sqrt(len(POSED))
    return np.ascontiguousarray(joints, dtype=np.float32)
