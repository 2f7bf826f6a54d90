"""The positive control: near copies that are planted in every run and that the copy test has to find."""

from __future__ import annotations

import numpy as np

from tasks.common import skeleton
from tasks.evaluate.memorization.invariances import flip

PIXEL_NOISE = 4 / 255  # standard deviation, of pictures in [0, 1]
POSE_NOISE = 0.005  # standard deviation, in torso lengths


def planted_pictures(train: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` noisy copies of training pictures float32 `[n, h, w, 3]` in [0, 1]; every second one is mirrored."""
    copies = train[rng.choice(len(train), count, replace=count > len(train))].copy()
    copies[1::2] = flip(copies[1::2])
    noisy = copies + rng.normal(0, PIXEL_NOISE, copies.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


def planted_poses(train: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` noisy copies of training poses `[n, 33, 3]`; every second one is mirrored."""
    copies = train[rng.choice(len(train), count, replace=count > len(train))].copy()
    copies[1::2] = skeleton.mirror(copies[1::2])
    return (copies + rng.normal(0, POSE_NOISE, copies.shape)).astype(np.float32)
