"""Converts the joints of a motion capture to the 33 landmarks of `tasks.common.skeleton`, as seen by a virtual camera.

Joints are recognised by their usual names (Mixamo, MotionBuilder, CMU, Rokoko). The 12 limb joints are required; toes and
finger joints are used if they exist. Landmarks that no skeleton has are derived: the face from the orientation of the head,
heels from ankle and toes, hands from the forearm.

A BVH file specifies neither its unit nor its vertical axis. A leg is assumed to be 0.85 m long, and the vertical is the axis
along which the head is above the ankles on average. The camera faces the person of the first frame and does not move.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tasks.common.skeleton import INDEX, LANDMARKS, torso_length
from tasks.extract.bvh import Motion, joint_frames
from tasks.extract.findings import Reason
from tasks.extract.source_files import Refusal

LEG = 0.85  # metres from hip to ankle

# For each landmark that can be a joint: the names of the joint after its side, the best name first.
_JOINTS = {
    "hip": ("upleg", "upperleg", "thigh", "hip"),
    "knee": ("leg", "lowleg", "lowerleg", "shin", "calf", "knee"),
    "ankle": ("foot", "ankle"),
    "foot_index": ("toebase", "toe", "toes"),
    "shoulder": ("arm", "uparm", "upperarm", "shoulder"),
    "elbow": ("forearm", "lowarm", "lowerarm", "elbow"),
    "wrist": ("wrist", "hand"),
    "index": ("handindex1", "index1", "fingerbase", "fingers", "handend"),
    "pinky": ("handpinky1", "pinky1"),
    "thumb": ("handthumb2", "thumb2", "handthumb1", "thumb1", "thumb"),
}
_NEEDED = ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")

# Offset from the joint at the base of an adult's skull in metres: to the left (of the left landmark), up, forward.
_FACE = {
    "nose": (0.0, 0.07, 0.115),
    "eye_inner": (0.016, 0.105, 0.09),
    "eye": (0.032, 0.105, 0.085),
    "eye_outer": (0.046, 0.105, 0.075),
    "ear": (0.075, 0.08, 0.0),
    "mouth": (0.025, 0.025, 0.095),
}
_HAND = 0.09  # metres from the wrist to the knuckles


def landmarks(motion: Motion, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World landmarks of these frames, float32 `[n, 33, 3]` (metres, axes of `tasks.common.skeleton`), and which of the 33 are
    known, bool `[33]`; the others are guesses. The middle of the hips is at 0.

    Raises Refusal if the skeleton is not that of a person.
    """
    pose, known = trajectory(motion, frames)
    pose -= pose[:, [INDEX["left_hip"], INDEX["right_hip"]]].mean(axis=1, keepdims=True)
    return pose.astype(np.float32), known


def trajectory(motion: Motion, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same landmarks where the person is in the room of the recording, float64 `[n, 33, 3]`.

    Raises Refusal if the skeleton is not that of a person.
    """
    joints = _named(motion)
    missing = [f"{side} {part}" for part in _NEEDED for side in ("left", "right") if f"{side}_{part}" not in joints]
    if missing or "head" not in joints:
        raise Refusal(Reason.NO_PERSON, f"no joint is called {(missing or ['head'])[0]}")
    positions, rotations = joint_frames(motion, frames)
    rest, _ = joint_frames(Motion(motion.joints, np.zeros_like(motion.values[:1]), 1.0), np.array([0]))
    view, scale = _camera(positions, rest[0], joints)
    positions = positions @ view.T * scale
    pose = np.zeros((len(frames), 33, 3))
    known = np.zeros(33, dtype=bool)
    for name, joint in joints.items():
        if name in INDEX:
            pose[:, INDEX[name]], known[INDEX[name]] = positions[:, joint], True
    head_axes = view @ rotations[:, joints["head"]] @ _upright(rest[0], joints)
    _derive_face(pose, positions[:, joints["head"]], head_axes)
    for side in ("left", "right"):
        _derive_foot(pose, known, side)
        _derive_hand(pose, known, side)
    if not (np.isfinite(pose).all() and (torso_length(pose) > 1e-6).all()):
        raise Refusal(Reason.NO_PERSON, "in some frame its torso has no length")
    return pose, known


def _named(motion: Motion) -> dict[str, int]:
    """The number of the joint for each landmark that has one, and for `head`."""
    plain: dict[str, int] = {}
    for j, joint in enumerate(motion.joints):
        if joint.name is not None:
            name = joint.name.split(":")[-1].lower().replace("_", "").replace("-", "").replace(" ", "")
            plain.setdefault(name, j)
    named: dict[str, int] = {}
    for part, names in _JOINTS.items():
        for side in ("left", "right"):
            for spelled in (prefix + name for name in names for prefix in (side, side[0])):
                if spelled in plain:
                    named.setdefault(f"{side}_{part}", plain[spelled])
    for end in [j for j, joint in enumerate(motion.joints) if joint.name is None]:
        for side in ("left", "right"):  # use the tip of the toes if the skeleton has it
            toe = named.get(f"{side}_foot_index")
            if motion.joints[end].parent == toe and np.linalg.norm(motion.joints[end].offset) > 0:
                named[f"{side}_foot_index"] = end
    return named | ({"head": plain["head"]} if "head" in plain else {})


def _camera(positions: np.ndarray, rest: np.ndarray, joints: dict[str, int]) -> tuple[np.ndarray, float]:
    """The rotation from the file's axes to the camera's, `[3, 3]`, and the length of the file's unit in metres."""
    ankles = (positions[:, joints["left_ankle"]] + positions[:, joints["right_ankle"]]) / 2
    rise = (positions[:, joints["head"]] - ankles).mean(axis=0)
    axis = int(np.abs(rise).argmax())
    up = np.zeros(3)
    up[axis] = np.sign(rise[axis])
    across = positions[0, joints["left_hip"]] - positions[0, joints["right_hip"]]
    left = across - up * (across @ up)
    leg = np.mean(
        [
            np.linalg.norm(rest[joints[f"{side}_{a}"]] - rest[joints[f"{side}_{b}"]])
            for side in ("left", "right")
            for a, b in pairwise(("hip", "knee", "ankle"))
        ]
    )
    if not (np.linalg.norm(left) > 0 and leg > 0):
        raise Refusal(Reason.NO_PERSON, "its hips or its legs have no length")
    left /= np.linalg.norm(left)
    return np.stack([left, -up, np.cross(left, -up)]), LEG / (2 * float(leg))


def _upright(rest: np.ndarray, joints: dict[str, int]) -> np.ndarray:
    """Left, up and forward of the skeleton at rest as columns, `[3, 3]`, in the file's axes."""
    hips = rest[[joints["left_hip"], joints["right_hip"]]]
    left = (hips[0] - hips[1]) / max(float(np.linalg.norm(hips[0] - hips[1])), 1e-12)
    rise = rest[joints["head"]] - hips.mean(axis=0)
    up = rise - left * (rise @ left)
    up /= max(float(np.linalg.norm(up)), 1e-12)
    return np.stack([left, up, np.cross(left, up)], axis=1)


def _derive_face(pose: np.ndarray, head: np.ndarray, frame: np.ndarray) -> None:
    """Add the face landmarks. `head` `[n, 3]`: positions; `frame` `[n, 3, 3]`: left, up and forward of the heads as columns."""
    for i, name in enumerate(LANDMARKS[:11]):
        side, part = -1 if "right" in name else 1, name.replace("left", "").replace("right", "").strip("_")
        left, up, forward = _FACE[part]
        pose[:, i] = head + frame @ np.array([side * left, up, forward])


def _derive_foot(pose: np.ndarray, known: np.ndarray, side: str) -> None:
    knee, ankle, heel, toe = (INDEX[f"{side}_{name}"] for name in ("knee", "ankle", "heel", "foot_index"))
    shin = pose[:, ankle] - pose[:, knee]
    shin /= np.linalg.norm(shin, axis=1, keepdims=True).clip(1e-9)
    if not known[toe]:
        forward = np.tile([0.0, 0.0, -1.0], (len(pose), 1))
        pose[:, toe] = pose[:, ankle] + 0.06 * shin + 0.15 * forward
    foot = pose[:, toe] - pose[:, ankle]
    down = shin * np.sum(foot * shin, axis=1, keepdims=True)
    pose[:, heel] = pose[:, ankle] + down - 0.35 * (foot - down)
    known[heel] = known[toe]


def _derive_hand(pose: np.ndarray, known: np.ndarray, side: str) -> None:
    elbow, wrist = INDEX[f"{side}_elbow"], INDEX[f"{side}_wrist"]
    along = pose[:, wrist] - pose[:, elbow]
    along /= np.linalg.norm(along, axis=1, keepdims=True).clip(1e-9)
    for finger in ("index", "pinky", "thumb"):
        if not known[INDEX[f"{side}_{finger}"]]:
            pose[:, INDEX[f"{side}_{finger}"]] = pose[:, wrist] + _HAND * along
