"""The gate: which persons found are good enough to keep, judged by what extraction measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.config.data import Curate
from tasks.dataset.dataset_table import Gate
from tasks.extract.poses_table import Poses


def gate(table: Poses, limits: Curate) -> dict[int, tuple[Gate, str]]:
    """Row -> the first reason of the closed list to refuse it, and the figure that decided. Rows that pass are absent.

    A row without a picture is judged by its visibility alone.
    """
    refused: dict[int, tuple[Gate, str]] = {}
    for reason, bad, measured, rule in _rules(table, limits):
        for i in np.flatnonzero(bad).tolist():
            refused.setdefault(i, (reason, f"{measured[i]:.4g}, {rule}"))
    return refused


def _rules(table: Poses, limits: Curate) -> Iterator[tuple[Gate, np.ndarray, np.ndarray, str]]:
    """For each reason: the rows it refuses (bool), the measured values, and the rule in words."""
    pictured = table.pictured
    visibility, pixels = table.limb_visibility, table.person_pixels
    sharpness, exposure = table.sharpness, table.exposure
    low, high = limits.min_exposure, limits.max_exposure
    yield (
        Gate.LOW_VISIBILITY,
        visibility < limits.min_visibility,
        visibility,
        f"at least {limits.min_visibility} mean visibility of the limbs",
    )
    small = pictured & (pixels < limits.min_pixels)
    yield Gate.PERSON_TOO_SMALL, small, pixels, f"at least {limits.min_pixels} pixels"
    cut = pictured & (table.truncation > limits.max_truncation)
    yield Gate.TRUNCATED, cut, table.truncation, f"at most {limits.max_truncation} of the limb joints outside"
    blurred = pictured & (sharpness < limits.min_sharpness)
    yield Gate.BLURRED, blurred, sharpness, f"at least {limits.min_sharpness} variance of the Laplacian"
    yield Gate.TOO_DARK, pictured & (exposure < low), exposure, f"at least {low} mean brightness"
    yield Gate.TOO_BRIGHT, pictured & (exposure > high), exposure, f"at most {high} mean brightness"
