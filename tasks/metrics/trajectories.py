"""Features of motion: the trajectory of a body over two seconds, so that sets of motions have a Frechet distance.

A clip is FRAMES poses of one person, evenly spaced over SECONDS, hip-centred, in units of the clip's median torso length. One
scale per clip keeps the bones from pulsing. For each coordinate of the 12 limb joints the features are

    the first MODES coefficients of the orthonormal cosine transform (DCT-II) over time, divided by sqrt(FRAMES). Squared
        differences are then mean squared distances over time. The first coefficient is the mean pose, the others are motion.
    the root sum of squares of all higher coefficients: how much the joint jitters

These are FEATURES numbers, few enough for a covariance from a few hundred clips. A model whose poses are right frame by frame
but whose motion is wrong is far from the truth in this space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.fft import dct

from tasks.common import motion
from tasks.common.skeleton import LIMBS, torso_length

FRAMES = 16
SECONDS = 2.0
GAP = 1.0  # seconds without a row that end a run; rows are left out while a person does not move
MODES = 4
FEATURES = len(LIMBS) * 3 * (MODES + 1)


class Clips(NamedTuple):
    """`poses` float32 `[c, FRAMES, 33, 3]`, and the `source` of each clip."""

    poses: np.ndarray
    source: list[str]


def clips(world: np.ndarray, source: Sequence[str], track: Sequence[int], seconds: np.ndarray) -> Clips:
    """All clips, one after another without overlap, in rows of world landmarks `[n, 33, 3]` (metres).

    Rows of the same source and track are one person at the times `seconds` `[n]`. The rest of a run after its last whole clip
    is not used, nor are clips of a person whose torso has no length.
    """
    rows_of: dict[tuple[str, int], list[int]] = {}
    for i, (name, number) in enumerate(zip(source, track, strict=True)):
        rows_of.setdefault((name, int(number)), []).append(i)
    clip_poses, clip_sources = [], []
    for (name, _), rows in rows_of.items():
        for run in motion.runs(seconds[rows], GAP):
            run_rows = np.array(rows)[run]
            times = seconds[run_rows]
            for start in np.arange(times[0], times[-1] - SECONDS + 1e-9, SECONDS):
                at = start + np.linspace(0, SECONDS, FRAMES)
                clip = motion.resampled(world[run_rows].astype(np.float64), times, at)
                scale = np.median(torso_length(clip))
                if scale > 1e-6:
                    hips = clip[:, 23:25].mean(axis=1, keepdims=True)
                    clip_poses.append((clip - hips) / scale)
                    clip_sources.append(name)
    return Clips(np.array(clip_poses, np.float32).reshape(-1, FRAMES, 33, 3), clip_sources)


def fitted(clips: np.ndarray) -> np.ndarray:
    """Clips `[c, frames, 33, 3]` of any number of frames with the hips at 0 and FRAMES frames over the same time."""
    frames = np.arange(clips.shape[1], dtype=np.float64)
    at = np.linspace(0, clips.shape[1] - 1, FRAMES)
    in_time = np.moveaxis(motion.in_place(clips.astype(np.float64)), 1, 0)
    result: np.ndarray = np.moveaxis(motion.resampled(in_time, frames, at), 0, 1).astype(np.float32)
    return result


def features(poses: np.ndarray) -> np.ndarray:
    """Trajectory features float32 `[c, FEATURES]` of clips `[c, FRAMES, 33, 3]`."""
    joints = poses[:, :, list(LIMBS)].astype(np.float64).reshape(len(poses), FRAMES, len(LIMBS) * 3)
    coefficients = dct(joints, axis=1, norm="ortho") / np.sqrt(FRAMES)
    jitter = np.sqrt((coefficients[:, MODES:] ** 2).sum(axis=1, keepdims=True))
    both = np.concatenate([coefficients[:, :MODES], jitter], axis=1)
    return both.reshape(len(poses), FEATURES).astype(np.float32)
