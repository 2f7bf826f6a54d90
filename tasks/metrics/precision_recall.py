"""Precision, recall, density and coverage of generated against real features, without a matrix of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.metrics.estimate import TooFewSamples, check_features
from tasks.metrics.neighbours import lengths, rounding_bound, search, squared_distances

BLOCK = 2048  # rows and columns of the distance matrix held at once


class Manifold(NamedTuple):
    """Shares in [0, 1] (density may exceed 1)."""

    precision: float  # share of generated vectors inside the ball of a real one
    recall: float  # share of real vectors inside the ball of a generated one
    density: float  # number of real balls a generated vector lies in, over k
    coverage: float  # share of real balls with a generated vector inside


def _inside(x: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many balls each row of `x` lies in `[r, n]`, and whether each ball holds a row of `x` `[r, m]`.

    `radii` `[r, m]`: several radii for each of the same centres. A ball includes its border. Squared distances come from
    matrix products in float32, in blocks of BLOCK x BLOCK. Pairs whose side of the border rounding could change are computed
    again in float64. Memory does not grow with n x m.
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
                near_row, near_column = np.nonzero(np.abs(beyond) <= slack)
                exact = squared_distances(x, i + near_row, centres, j + near_column)
                inside[near_row, near_column] = np.sqrt(exact) <= radius[near_column]
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
    generated, real = (np.ascontiguousarray(features, dtype=np.float32) for features in (generated, real))
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
