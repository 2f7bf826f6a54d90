"""The gate: which persons found are good enough to keep, by what extraction measured of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.config.data import Curate
from tasks.dataset.dataset_table import Gate
from tasks.extract.poses_table import Poses


def gate(found: Poses, limits: Curate) -> dict[int, tuple[Gate, str]]:
    """Row -> the first reason of the closed list for which it is refused, and the figure; rows that pass are absent.

    A row without a picture is judged by its visibility alone.
    """
    refused: dict[int, tuple[Gate, str]] = {}
    for reason, bad, measured, words in _rules(found, limits):
        for i in np.flatnonzero(bad).tolist():
            refused.setdefault(i, (reason, f"{measured[i]:.4g}, {words}"))
    return refused


def _rules(found: Poses, limits: Curate) -> Iterator[tuple[Gate, np.ndarray, np.ndarray, str]]:
    """For each reason: which rows it refuses, the number it looks at, and the rule in words."""
    seen = found.pictured
    visibility, pixels = found.limb_visibility, found.person_pixels
    sharpness, exposure = found.sharpness, found.exposure
    low, high = limits.min_exposure, limits.max_exposure
    yield (
        Gate.LOW_VISIBILITY,
        visibility < limits.min_visibility,
        visibility,
        f"at least {limits.min_visibility} mean visibility of the limbs",
    )
    small = seen & (pixels < limits.min_pixels)
    yield Gate.PERSON_TOO_SMALL, small, pixels, f"at least {limits.min_pixels} pixels"
    cut = seen & (found.truncation > limits.max_truncation)
    yield Gate.TRUNCATED, cut, found.truncation, f"at most {limits.max_truncation} of the limb joints outside"
    blurred = seen & (sharpness < limits.min_sharpness)
    yield Gate.BLURRED, blurred, sharpness, f"at least {limits.min_sharpness} variance of the Laplacian"
    yield Gate.TOO_DARK, seen & (exposure < low), exposure, f"at least {low} mean brightness"
    yield Gate.TOO_BRIGHT, seen & (exposure > high), exposure, f"at most {high} mean brightness"
