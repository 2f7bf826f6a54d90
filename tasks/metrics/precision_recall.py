"""Precision, recall, density and coverage of generated against real features, without a matrix of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.metrics.estimate import TooFewSamples, check_features
from tasks.metrics.neighbours import lengths, rounding_bound, search, squared_distances

BLOCK = 2048  # rows and columns of the distance matrix held at once


class Manifold(NamedTuple):
    """Shares in [0, 1] (density may exceed 1)."""

    precision: float  # of generated vectors inside the ball of some real one
    recall: float  # of real vectors inside the ball of some generated one
    density: float  # real balls a generated vector lies in, over k
    coverage: float  # of real balls with a generated vector inside


def _inside(x: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many balls each row of `x` lies in (border included) `[r, n]`, and whether each ball holds a row of `x`
    `[r, m]`, for several radii `[r, m]` of the same centres.

    Squared distances by matrix product in float32, blocks of BLOCK x BLOCK; the pairs that rounding could take to the other
    side of a border are computed again in float64. Memory does not grow with n x m.
    """
    width, origin = x.shape[1], centres.mean(axis=0)
    count = np.zeros((len(radii), len(x)), np.int64)
    held = np.zeros((len(radii), len(centres)), bool)
    for i in range(0, len(x), BLOCK):
        rows = x[i : i + BLOCK] - origin
        reach = lengths(rows)
        own = np.einsum("nd,nd->n", rows, rows)
        for j in range(0, len(centres), BLOCK):
            columns = centres[j : j + BLOCK] - origin
            squared = rows @ columns.T
            squared *= -2
            squared += own[:, None]
            squared += np.einsum("nd,nd->n", columns, columns)
            slack = rounding_bound(width, reach, lengths(columns).max())[:, None]
            for r, radius in enumerate(radii[:, j : j + BLOCK]):
                beyond = squared - radius**2
                inside = beyond <= 0
                some, which = np.nonzero(np.abs(beyond) <= slack)
                exact = squared_distances(x, i + some, centres, j + which)
                inside[some, which] = np.sqrt(exact) <= radius[which]
                count[r, i : i + BLOCK] += inside.sum(axis=1)
                held[r, j : j + BLOCK] |= inside.any(axis=0)
    return count, held


def precision_recall_density_coverage(
    generated: np.ndarray, real: np.ndarray, *, k: int = 3, k_density: int = 5
) -> Manifold:
    """Precision and recall with balls to the k-th neighbour (Kynkäänniemi et al. 2019, eq. 1-3), density and coverage
    with balls to the k_density-th (Naeem et al. 2020, eq. 3-4), for features `[n, d]` and `[m, d]`.

    Raises TooFewSamples if a set has no more than k_density vectors.
    """
    d = check_features("the generated set", generated).shape[1]
    check_features("the real set", real, d)
    generated, real = (np.ascontiguousarray(some, dtype=np.float32) for some in (generated, real))
    n = min(len(generated), len(real))
    if n <= max(k, k_density):
        raise TooFewSamples("precision and recall", n, max(k, k_density) + 1)
    # The first neighbour of a row in its own set is the row itself.
    to_real = search(real, real, max(k, k_density) + 1).distance
    to_generated = search(generated, generated, k + 1).distance
    (in_real, in_wider), (_, covered) = _inside(generated, real, to_real[:, [k, k_density]].T)
    (in_generated,), _ = _inside(real, generated, to_generated[:, [k]].T)
    return Manifold(
        precision=float((in_real > 0).mean()),
        recall=float((in_generated > 0).mean()),
        density=float(in_wider.mean() / k_density),
        coverage=float(covered.mean()),
    )
