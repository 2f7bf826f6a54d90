"""The error of extracted landmarks against true joints, which are known for rendered pictures.

The truth of a picture `<name>.png` is in `<name>.joints.json` beside it: for the landmarks listed under `names`, `image` has
their positions in the picture (pixels) and `world` their positions in camera space (metres; x right, y down, z away).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tasks.common import files
from tasks.common.errors import DataError
from tasks.common.skeleton import LANDMARKS, LIMBS, MIRROR, torso_length
from tasks.common.text import one_line
from tasks.extract.poses_table import Poses
from tasks.extract.scan import JOINTS_SUFFIX

log = logging.getLogger(__name__)


def can_measure(sources: Iterable[str], folder: Path) -> bool:
    """Whether any of these pictures has a truth file."""
    return any(os.path.isfile(_truth(folder, source)) for source in sources)


def _truth(folder: Path, source: str) -> str:
    """The path of a picture's truth file, whether or not it exists."""
    return f"{folder}/{os.path.splitext(source)[0]}{JOINTS_SUFFIX}"


def measure(poses: Poses, folder: Path) -> dict[str, float] | None:
    """Errors of the 12 limb joints of the first person of each picture below `folder` that has a truth file; None if none has.

    A truth file that cannot be used is named in a warning.

    persons                         number of persons measured
    pixels_mean, pixels_median      distance in the picture, over all joints of all persons
    torsos_mean, torsos_median      the same relative to the person's true torso length in the picture
    within_0.2, within_0.5          fraction of joints nearer than this fraction of the torso (PCK)
    swapped                         fraction of persons who fit better with left and right exchanged
    metres_mean, metres_median      distance in space, hips at the origin, each person scaled to fit (`scaled_error`)
    """
    truths: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    problems: list[str] = []
    for i, source in enumerate(poses.source):
        path = _truth(folder, source)
        if poses.person[i] == 0 and os.path.isfile(path):
            try:
                truths[i] = _read(Path(path))
            except DataError as error:  # a file of another program's that happens to have this name
                problems.append(str(error))
    if problems:
        more = f" So are {len(problems) - 1} more." if len(problems) > 1 else ""
        log.warning(f"{one_line(problems[0])} It is not used.{more}")
    if not truths:
        return None
    known = list(truths)
    true_pixels, true_world = (np.stack(arrays) for arrays in zip(*truths.values(), strict=True))
    limbs = list(LIMBS)
    estimated = poses.pixels[known].astype(np.float64)
    pixels = np.linalg.norm(estimated - true_pixels, axis=-1)[:, limbs]
    exchanged = np.linalg.norm(estimated[:, MIRROR] - true_pixels, axis=-1)[:, limbs]
    torsos = pixels / torso_length(true_pixels)[:, None]
    metres = scaled_error(poses.world[known].astype(np.float64), true_world)[:, limbs]
    return {
        "persons": len(known),
        "pixels_mean": float(pixels.mean()),
        "pixels_median": float(np.median(pixels)),
        "torsos_mean": float(torsos.mean()),
        "torsos_median": float(np.median(torsos)),
        "within_0.2": float((torsos < 0.2).mean()),
        "within_0.5": float((torsos < 0.5).mean()),
        "swapped": float((exchanged.mean(axis=1) < pixels.mean(axis=1)).mean()),
        "metres_mean": float(metres.mean()),
        "metres_median": float(np.median(metres)),
    }


def scaled_error(estimated: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The distance of each landmark, `[n, 33]`, between poses `[n, 33, 3]`, both with the middle of the hips at the origin.

    The estimated pose is scaled to minimise the squared distance of the limb joints, because a single picture cannot tell a
    small person from a distant one. It is not rotated.
    """
    limbs = list(LIMBS)
    estimated, true = (pose - pose[:, 23:25].mean(axis=1, keepdims=True) for pose in (estimated, true))
    product = np.sum(estimated[:, limbs] * true[:, limbs], axis=(1, 2))
    scale = product / np.sum(estimated[:, limbs] ** 2, axis=(1, 2))
    distance: np.ndarray = np.linalg.norm(scale[:, None, None] * estimated - true, axis=-1)
    return distance


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The true landmarks in the order of LANDMARKS: pixels `[33, 2]` and metres `[33, 3]`."""
    try:
        truth = files.read_json(path)
        order = [truth["names"].index(name) for name in LANDMARKS]
        image = np.array(truth["image"], np.float64)[order].reshape(33, 2)
        world = np.array(truth["world"], np.float64)[order].reshape(33, 3)
        if not (np.isfinite(image).all() and np.isfinite(world).all() and torso_length(image) > 0):
            raise ValueError("impossible positions")
        return image, world
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{path} does not hold true joints ({type(error).__name__}: {error}).") from error
