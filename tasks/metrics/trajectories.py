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

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.fft import dct

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


def _runs(times: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of ascending times without a gap, as index arrays into `times`."""
    order = np.argsort(times, kind="stable")
    order = order[np.append(True, np.diff(times[order]) > 0)]  # one row per time
    yield from np.split(order, np.flatnonzero(np.diff(times[order]) > GAP) + 1)


def _resampled(poses: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Poses `[n, 33, 3]` at `times` `[n]`, linearly interpolated to the times `at`: `[len(at), 33, 3]`."""
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    share = (at - times[after - 1]) / (times[after] - times[after - 1])
    interpolated: np.ndarray = poses[after - 1] + share[:, None, None] * (poses[after] - poses[after - 1])
    return interpolated


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
        for run in _runs(seconds[rows]):
            run_rows = np.array(rows)[run]
            times = seconds[run_rows]
            for start in np.arange(times[0], times[-1] - SECONDS + 1e-9, SECONDS):
                at = start + np.linspace(0, SECONDS, FRAMES)
                clip = _resampled(world[run_rows].astype(np.float64), times, at)
                scale = np.median(torso_length(clip))
                if scale > 1e-6:
                    hips = clip[:, 23:25].mean(axis=1, keepdims=True)
                    clip_poses.append((clip - hips) / scale)
                    clip_sources.append(name)
    return Clips(np.array(clip_poses, np.float32).reshape(-1, FRAMES, 33, 3), clip_sources)


def features(poses: np.ndarray) -> np.ndarray:
    """Trajectory features float32 `[c, FEATURES]` of clips `[c, FRAMES, 33, 3]`."""
    joints = poses[:, :, list(LIMBS)].astype(np.float64).reshape(len(poses), FRAMES, len(LIMBS) * 3)
    coefficients = dct(joints, axis=1, norm="ortho") / np.sqrt(FRAMES)
    jitter = np.sqrt((coefficients[:, MODES:] ** 2).sum(axis=1, keepdims=True))
    both = np.concatenate([coefficients[:, :MODES], jitter], axis=1)
    return both.reshape(len(poses), FEATURES).astype(np.float32)
