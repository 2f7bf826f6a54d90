"""The copy test for motion: clips are compared over a window in their middle, so that a copy may be shifted in time or slower.

Compared are the joints POSED relative to the hips, with the person of the middle frame turned forward. A sample is shifted by
up to SHIFT of its length, played faster and slower, and mirrored; the training clips stay as they are.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tasks.common import motion, skeleton
from tasks.evaluate.memorization.invariances import Bank, Invariance, Transformation, identity
from tasks.evaluate.memorization.positive_control import Planted, Planter

WINDOW = 2 / 3  # of a clip's frames that are compared
SHIFT = 1 / 6  # of a clip's frames
TEMPOS = (0.8, 1.25)
NOISE = 0.005  # of planted copies, torso lengths


def _window(frames: int) -> slice:
    length = max(2, round(WINDOW * frames))
    start = (frames - length) // 2
    return slice(start, start + length)


def features(clips: np.ndarray) -> np.ndarray:
    """The middle of clips `[n, frames, 33, 3]` as points, float32 `[n, d]`; distances are root mean squares."""
    frames = clips.shape[1]
    middle = motion.in_place(clips.astype(np.float64))[:, _window(frames)]
    turned = motion.turned(middle, motion.yaw(middle[:, middle.shape[1] // 2]))
    joints = turned[:, :, skeleton.POSED]
    scale = np.sqrt(joints.shape[1] * joints.shape[2])
    return np.ascontiguousarray(joints.reshape(len(clips), -1) / scale, np.float32)


def replayed(shift: float, tempo: float, clips: np.ndarray) -> np.ndarray:
    """Clips played `tempo` times as fast about their middle, and moved by `shift` frames; the ends are repeated."""
    frames = clips.shape[1]
    middle = (frames - 1) / 2
    at = np.clip(middle + shift + tempo * (np.arange(frames) - middle), 0, frames - 1)
    in_time = np.moveaxis(clips, 1, 0)
    result: np.ndarray = np.moveaxis(motion.resampled(in_time, np.arange(frames, dtype=np.float64), at), 0, 1)
    return result.astype(clips.dtype)


def _mirrored(invariance: Invariance) -> Invariance:
    def apply(clips: np.ndarray) -> np.ndarray:
        return invariance.apply(skeleton.mirror(clips))

    return Invariance("mirror" if invariance.name == "as is" else f"mirror, {invariance.name}", apply)


def bank(frames: int) -> Bank:
    """The bank for clips of so many frames."""
    most = int(SHIFT * frames)
    shifts = sorted({*range(-most, most + 1, max(1, most // 2)), -most, most} - {0})
    plain = [Invariance("as is", identity)]
    plain += [Invariance(f"{shift:+d} frames", partial(replayed, float(shift), 1.0)) for shift in shifts]
    plain += [Invariance(f"tempo {tempo}", partial(replayed, 0.0, tempo)) for tempo in TEMPOS]
    return Bank("motion", (*plain, *map(_mirrored, plain)), features, identity)


def planter(train: np.ndarray) -> Planter:
    """Plants noisy copies of clips `[n, frames, 33, 3]`: in turn as they are, mirrored, later, and slower."""
    most = float(int(SHIFT * train.shape[1]))
    disguises: dict[str, Transformation] = {
        "noise": identity,
        "mirror": skeleton.mirror,
        "later": partial(replayed, most, 1.0),
        "slower": partial(replayed, 0.0, TEMPOS[0]),
    }

    def plant(count: int, rng: np.random.Generator) -> Planted:
        original = rng.choice(len(train), count, replace=count > len(train))
        names = [list(disguises)[i % len(disguises)] for i in range(count)]
        copies = np.stack([disguises[name](train[[row]])[0] for name, row in zip(names, original, strict=True)])
        noisy = (copies + rng.normal(0, NOISE, copies.shape)).astype(np.float32)
        return Planted(noisy, original.astype(np.int64), names)

    return plant
