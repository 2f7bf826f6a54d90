"""The kernel distance between two sets of feature vectors (KID, if the features are Inception's), with an interval."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from tasks.metrics.estimate import Estimate, TooFewSamples, check_features
from tasks.metrics.sources import SourceNames, Sources, sources_of

KID_NEEDS = 20  # vectors a side below which the jackknife interval means nothing
BLOCK = 2048  # rows of the kernel matrix held at once


def kernel_row_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each row of `x`, the sum over the rows of `y` of the kernel (x.y/d + 1)^3: float64 `[n]`."""
    d = x.shape[1]
    sums = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        sums[start : start + BLOCK] = sum(
            ((rows @ y[other : other + BLOCK].T / d + 1) ** 3).sum(axis=1) for other in range(0, len(y), BLOCK)
        )
    return sums


def _own_row_sums(x: np.ndarray, sources: Sources) -> np.ndarray:
    """For each row of `x` `[n, d]`, the sum of the kernel over the rows of its source, the row itself included: `[n]`."""
    if sources.number == len(x):
        itself: np.ndarray = ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3
        return itself
    sums = np.empty(len(x))
    for rows in np.split(np.argsort(sources.of, kind="stable"), np.cumsum(np.bincount(sources.of))[:-1]):
        sums[rows] = kernel_row_sums(x[rows], x[rows])
    return sums


def kid(x: np.ndarray, y: np.ndarray, *, level: float = 0.95, sources: SourceNames | None = None) -> Estimate:
    """Kernel (Inception) distance of Binkowski et al. 2018: the unbiased squared MMD with kernel (x.y/d + 1)^3.

    The mean is over all pairs of `x` `[n, d]` and `y` `[m, d]`, not over random subsets. The interval comes from the
    delete-one jackknife of both sets. With `sources`, only pairs of different sources count, and the jackknife deletes whole
    sources. Memory is bounded by blocks of kernel rows. Raises TooFewSamples below 20 vectors, or sources, a side.
    """
    d = check_features("the first set", x).shape[1]
    check_features("the second set", y, d)
    n, m = len(x), len(y)
    what = "the kernel distance"
    if min(n, m) < KID_NEEDS:
        raise TooFewSamples(what, min(n, m), KID_NEEDS)
    of_x, of_y = (sources_of(sources and sources[i], len(some), what) for i, some in enumerate((x, y)))
    x, y = x.astype(np.float64), y.astype(np.float64)
    # Sums by source: over the pairs with other sources of the set, and over those with the other set.
    within_x = of_x.sums(kernel_row_sums(x, x) - _own_row_sums(x, of_x))
    within_y = of_y.sums(kernel_row_sums(y, y) - _own_row_sums(y, of_y))
    from_x, from_y = of_x.sums(kernel_row_sums(x, y)), of_y.sums(kernel_row_sums(y, x))
    size_x, size_y = np.bincount(of_x.of), np.bincount(of_y.of)
    xx, yy, xy = within_x.sum(), within_y.sum(), from_x.sum()
    pairs_x, pairs_y = n * n - size_x @ size_x, m * m - size_y @ size_y

    value = xx / pairs_x + yy / pairs_y - 2 * xy / (n * m)
    # The jackknife: the statistic without each source of x, and without each source of y, from the same sums.
    left_x, left_y = n - size_x, m - size_y
    without_x = (xx - 2 * within_x) / (pairs_x - 2 * size_x * left_x) + yy / pairs_y - 2 * (xy - from_x) / (left_x * m)
    without_y = xx / pairs_x + (yy - 2 * within_y) / (pairs_y - 2 * size_y * left_y) - 2 * (xy - from_y) / (n * left_y)
    variance = (of_x.number - 1) * without_x.var() + (of_y.number - 1) * without_y.var()
    half_width = float(ndtri(0.5 + level / 2) * np.sqrt(variance))
    return Estimate(float(value), float(value) - half_width, float(value) + half_width, 0.0, n, m)
