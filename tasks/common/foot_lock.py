"""Feet that slide while they stand, held in place afterwards: a repair of motion, not a property of the model that made it.

While the tip of a foot stands (`stands`), the foot is moved so that the tip stays at one place of the floor, and the knee
follows by two-bone inverse kinematics: thigh and shin keep their lengths, the hip stays where it is. Before and after, the
shift fades out. Kovar, Schreiner and Gleicher 2002, "Footskate cleanup for motion capture editing" (SCA), without the changes
of the root and of bone lengths there: a place out of reach is approached as far as the leg allows.
"""

from __future__ import annotations

import numpy as np

from tasks.common.skeleton import INDEX

CONTACT = 0.12  # torso lengths above the floor (about 6 cm) below which the ball of a foot counts as standing
STILL = 0.8  # torso lengths per second of vertical speed below which it does
FADE = 0.25  # seconds over which a shift begins and ends
REACH = 0.999  # of the leg's length
SIDES = ("left", "right")


def stands(tips: np.ndarray, rate: float) -> np.ndarray:
    """Whether the tips of feet `[n, frames, feet, 3]` stand in each step between two frames: bool `[n, frames - 1, feet]`.

    The floor of a clip is the lowest place of its feet. y points down. A foot stands if it is within CONTACT of it in both
    frames and moves up or down more slowly than STILL.
    """
    height = tips[..., 1].max(axis=(1, 2), keepdims=True) - tips[..., 1]
    vertical = np.abs(np.diff(tips[..., 1], axis=1)) * rate
    result: np.ndarray = (np.maximum(height[:, 1:], height[:, :-1]) < CONTACT) & (vertical < STILL)
    return result


def locked(clips: np.ndarray, rate: float) -> np.ndarray:
    """Clips `[n, frames, 33, 3]` in which standing feet do not slide."""
    out = clips.astype(np.float64)
    tips = out[:, :, [INDEX[f"{side}_foot_index"] for side in SIDES]]
    standing = stands(tips, rate)
    for foot, side in enumerate(SIDES):
        hip, knee, ankle, heel, tip = (
            INDEX[f"{side}_{name}"] for name in ("hip", "knee", "ankle", "heel", "foot_index")
        )
        for clip, tip_of, steps in zip(out, tips[:, :, foot], standing[:, :, foot], strict=True):
            shift = _shifts(tip_of, steps, round(FADE * rate))
            bent, moved = _bent(clip[:, hip], clip[:, knee], clip[:, ankle], shift)
            clip[:, knee] = bent
            for joint in (ankle, heel, tip):
                clip[:, joint] += moved
    return out.astype(clips.dtype)


def _shifts(tip: np.ndarray, standing: np.ndarray, fade: int) -> np.ndarray:
    """How far a foot with these tips `[frames, 3]` is to move along the floor in each frame, `[frames, 3]`."""
    frames = len(tip)
    shift, known = np.zeros((frames, 3)), np.zeros(frames, bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], standing.astype(int), [0]])))
    for first, last in edges.reshape(-1, 2):  # steps first ... last - 1, that is frames first ... last
        run = slice(first, last + 1)
        shift[run] = np.median(tip[run], axis=0) - tip[run]
        known[run] = True
    shift[:, 1] = 0
    if not known.any():
        return shift
    at, times = np.flatnonzero(known), np.arange(frames)
    free = ~known
    before = np.searchsorted(at, times, side="right") - 1
    for frame in times[free]:
        neighbours = [(frame - at[before[frame]], at[before[frame]])] if before[frame] >= 0 else []
        if before[frame] + 1 < len(at):
            neighbours.append((at[before[frame] + 1] - frame, at[before[frame] + 1]))
        shift[frame] = sum(max(0.0, 1 - distance / (fade + 1)) * shift[other] for distance, other in neighbours)
    return shift


def _bent(hip: np.ndarray, knee: np.ndarray, ankle: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The knees `[frames, 3]` of legs whose ankles are moved by `shift`, and by how much they can be moved."""
    thigh, shin = np.linalg.norm(knee - hip, axis=1), np.linalg.norm(ankle - knee, axis=1)
    wanted = ankle + shift - hip
    old = np.linalg.norm(ankle - hip, axis=1)
    most = np.maximum(REACH * (thigh + shin), old)  # a leg that was longer may stay so
    length = np.linalg.norm(wanted, axis=1)
    least = np.abs(thigh - shin) + 1e-6
    reached = wanted * (np.clip(length, least, most) / np.maximum(length, 1e-9))[:, None]
    moved = hip + reached - ankle
    axis = reached / np.maximum(np.linalg.norm(reached, axis=1), 1e-9)[:, None]
    distance = np.linalg.norm(reached, axis=1)
    along = (thigh**2 - shin**2 + distance**2) / (2 * np.maximum(distance, 1e-9))
    off = np.sqrt(np.maximum(thigh**2 - along**2, 0.0))
    side = (knee - hip) - ((knee - hip) * axis).sum(axis=1, keepdims=True) * axis
    side /= np.maximum(np.linalg.norm(side, axis=1), 1e-9)[:, None]
    bent = hip + along[:, None] * axis + off[:, None] * side
    still = np.abs(moved).max(axis=1) < 1e-12
    return np.where(still[:, None], knee, bent), moved
