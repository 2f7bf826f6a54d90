"""The poses that the stage `pose_accuracy` read in the generated pictures, for the stages after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks import paths
from tasks.common import arrays
from tasks.common.errors import DataError

FILE = "read.npz"


def write(folder: Path, keys: list[str], poses: np.ndarray) -> None:
    """Store the keys of the pictures and their poses float32 `[n, 33, 3]` in a new folder."""
    arrays.write(folder / FILE, {"key": np.array(keys, str), "pose": poses})


def read(root: Path) -> tuple[list[str], np.ndarray]:
    """The keys of the pictures and the poses read in them, float32 `[n, 33, 3]`, NaN if nobody was found.

    Raises DataError if the stage `pose_accuracy` has not run.
    """
    path = root / paths.POSE_ACCURACY / FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist: the pose_accuracy stage writes it.")
    stored = arrays.read(path)
    return [str(key) for key in stored["key"]], stored["pose"]
