"""Mannequin pictures with true poses, and the model that reads poses in them."""

from __future__ import annotations

import numpy as np

from tasks.common import skeleton
from tasks.synthetic import stage as mannequin
from tests.support.project import PROJECT

MODEL = PROJECT / "models/pose_landmarker_full.task"


def figures(indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Mannequin pictures uint8 `[n, 160, 160, 3]` and their true poses, normalised."""
    drawn = [mannequin.picture(seed=0, index=index, size=160) for index in indices]
    world = np.array([some.truth["world"] for some in drawn])
    return np.stack([some.image for some in drawn]), skeleton.normalise(world).astype(np.float32)
