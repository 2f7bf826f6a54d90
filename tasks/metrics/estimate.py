"""A statistic with its confidence interval, and the error for too few samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tasks.common.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A statistic of two samples of sizes `n` and `m`, with the ends of its confidence interval.

    `bias`: what was subtracted from the plug-in value (0 for an unbiased estimator).
    """

    value: float
    low: float
    high: float
    bias: float
    n: int
    m: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


class TooFewSamples(DataError):
    """The statistic would be mostly bias or noise at this sample size."""

    def __init__(self, what: str, n: int, needed: int, unit: str = "samples") -> None:
        super().__init__(f"{what} needs at least {needed} {unit} on each side, and there are {n}.")
        self.n = n
        self.needed = needed


def check_features(name: str, x: np.ndarray, dimension: int | None = None) -> np.ndarray:
    """`x` `[n, d]` itself; raises DataError unless it is a matrix with rows, finite, and `dimension` wide if given."""
    if x.ndim != 2 or not len(x):
        raise DataError(f"{name}: a matrix with at least one row is needed, and the shape is {x.shape}.")
    if dimension is not None and x.shape[1] != dimension:
        raise DataError(f"{name}: {x.shape[1]} features a row where {dimension} are expected.")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise DataError(f"{name}: {len(bad)} of {len(x)} rows are not finite, the first is row {bad[0]}.")
    return x
