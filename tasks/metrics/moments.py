"""Mean and covariance of features in float64, mergeable across parts of a set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.metrics.estimate import check_features


@dataclass(frozen=True)
class Moments:
    """Count, mean `[d]` and scatter `[d, d]` (sum of outer products of deviations) of a set of feature vectors."""

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Moments:
        """The moments of the rows of `x` `[n, d]`; raises DataError if they are not finite."""
        x = check_features("a feature set", x).astype(np.float64)
        mean = x.mean(axis=0)
        deviation = x - mean
        return cls(len(x), mean, deviation.T @ deviation)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance `[d, d]`; needs two vectors."""
        return self.scatter / (self.n - 1)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together, exact and stable (Chan, Golub & LeVeque 1979, eq. 2.1)."""
        n = self.n + other.n
        step = other.mean - self.mean
        return Moments(
            n,
            self.mean + step * (other.n / n),
            self.scatter + other.scatter + np.outer(step, step) * (self.n * other.n / n),
        )
