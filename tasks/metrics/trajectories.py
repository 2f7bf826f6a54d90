"""Motion as vectors: the trajectory of a body over two seconds, so that sets of motions have a Frechet distance.

A clip is FRAMES poses of one person, evenly spaced over SECONDS, hip-centred, in units of the clip's median torso length (one
scale a clip: bones must not pulse). Its features are, for each coordinate of the 12 limb joints,

    the first MODES coefficients of the orthonormal cosine transform (DCT-II) over time, divided by sqrt(FRAMES):
        squared differences are mean squared distances over time; the first coefficient is the mean pose, the others motion
    the root mean square of all higher ones: how much the joint trembles

which makes FEATURES numbers, few enough for a covariance of some hundred clips. A model whose poses are right frame by frame
and whose motion is not is far from the truth in this space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.fft import dct

from tasks.common.skeleton import LIMBS, torso_length

FRAMES = 16
SECONDS = 2.0
GAP = 1.0  # seconds without a row after which a track begins anew; rows are left out where nobody moves
MODES = 4
FEATURES = len(LIMBS) * 3 * (MODES + 1)


class Clips(NamedTuple):
    """`poses` float32 `[c, FRAMES, 33, 3]`, and the `source` that each clip is from."""

    poses: np.ndarray
    source: list[str]


def _runs(times: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of ascending times without a gap, as index arrays into `times`."""
    order = np.argsort(times, kind="stable")
    order = order[np.append(True, np.diff(times[order]) > 0)]  # one row a moment
    yield from np.split(order, np.flatnonzero(np.diff(times[order]) > GAP) + 1)


def _resampled(poses: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Poses `[n, 33, 3]` linearly interpolated to other times: `[len(at), 33, 3]`."""
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    share = (at - times[after - 1]) / (times[after] - times[after - 1])
    return poses[after - 1] + share[:, None, None] * (poses[after] - poses[after - 1])


def clips(world: np.ndarray, source: Sequence[str], track: Sequence[int], seconds: np.ndarray) -> Clips:
    """All clips, one after another without overlap, in rows of world landmarks `[n, 33, 3]` (metres).

    Rows of the same source and track are one person, seen at these seconds. What is left of a run after the last whole clip
    is not used; the clips of a person whose torso has no length are left out.
    """
    rows: dict[tuple[str, int], list[int]] = {}
    for i, whose in enumerate(zip(source, track, strict=True)):
        rows.setdefault((whose[0], int(whose[1])), []).append(i)
    found, sources = [], []
    for (name, _), some in rows.items():
        for run in _runs(seconds[some]):
            here = np.array(some)[run]
            times = seconds[here]
            for start in np.arange(times[0], times[-1] - SECONDS + 1e-9, SECONDS):
                at = start + np.linspace(0, SECONDS, FRAMES)
                clip = _resampled(world[here].astype(np.float64), times, at)
                scale = np.median(torso_length(clip))
                if scale > 1e-6:
                    hips = clip[:, 23:25].mean(axis=1, keepdims=True)
                    found.append((clip - hips) / scale)
                    sources.append(name)
    poses = np.array(found, np.float32).reshape(-1, FRAMES, 33, 3)
    return Clips(poses, sources)


def features(poses: np.ndarray) -> np.ndarray:
    """Trajectory features float32 `[c, FEATURES]` of clips `[c, FRAMES, 33, 3]`."""
    joints = poses[:, :, list(LIMBS)].astype(np.float64).reshape(len(poses), FRAMES, len(LIMBS) * 3)
    coefficients = dct(joints, axis=1, norm="ortho") / np.sqrt(FRAMES)
    trembling = np.sqrt((coefficients[:, MODES:] ** 2).sum(axis=1, keepdims=True))
    both = np.concatenate([coefficients[:, :MODES], trembling], axis=1)
    return both.reshape(len(poses), FEATURES).astype(np.float32)
