"""Feature vectors from known laws, for the tests of the distances."""

from __future__ import annotations

import numpy as np


def law(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, non-normal features (softplus of mixed normals): float64 `[n, d]`."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(0, 1 / np.sqrt(d), (d, d))
    return np.log1p(np.exp(rng.normal(shift, 1, (n, d)) @ mix))
