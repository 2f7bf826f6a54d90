"""The Frechet distance between two sets of feature vectors (FID, if the features are Inception's), with an interval."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from scipy.special import ndtri

from tasks.metrics.estimate import Estimate, TooFewSamples, check_features
from tasks.metrics.moments import Moments
from tasks.metrics.sources import SourceNames, sources_of

HALVINGS = 5  # more make the bias correction less noisy, and each costs four distances


def _same_spectrum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A symmetric matrix with the eigenvalues of a b, for covariances a and b `[d, d]`; its upper triangle is valid.

    It is U b U^T with a = U^T U, by Cholesky and LAPACK's reduction of generalised symmetric problems, which takes a quarter
    of the operations of two products. If a does not have full rank, U comes from its eigenvectors.
    """
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(a))  # several times as fast as scipy's
    if not failed:
        reduced: np.ndarray = scipy.linalg.lapack.dsygst(b.T, factor.numpy().T, itype=3, lower=0)[0]
        return reduced
    values, vectors = torch.linalg.eigh(torch.from_numpy(a))
    root = vectors * values.clamp(min=0).sqrt()
    product: np.ndarray = (root.T @ torch.from_numpy(b) @ root).numpy()
    return product


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the normal laws with these moments, in squared feature units.

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2)   (Heusel et al. 2017, eq. 6)

    The last trace is the sum of the square roots of the eigenvalues of U B U^T with A = U^T U. That matrix is symmetric, so
    no complex numbers and no matrix square root occur. Raises TooFewSamples if either set has fewer than 2 vectors.
    """
    if min(a.n, b.n) < 2:
        raise TooFewSamples("the Frechet distance", min(a.n, b.n), 2)
    product = _same_spectrum(a.covariance, b.covariance)
    eigenvalues = scipy.linalg.eigvalsh(product, lower=False, check_finite=False, overwrite_a=True)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    step = a.mean - b.mean
    return float(step @ step + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def frechet_of(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance between the rows of `x` `[n, d]` and `y` `[m, d]`, biased upwards by about 1/n.

    This is the plain (plug-in) value of the literature. If there are no more rows than features, the trace of the matrix
    square root is the nuclear norm of the [n, m] product of the centred data, and no d x d matrix is formed.
    """
    n, m, d = len(x), len(y), x.shape[1]
    if max(n, m) > d:
        return frechet(Moments.of(x), Moments.of(check_features("the second set", y, d)))
    if min(n, m) < 2:
        raise TooFewSamples("the Frechet distance", min(n, m), 2)
    x = check_features("the first set", x).astype(np.float64)
    y = check_features("the second set", y, d).astype(np.float64)
    step = x.mean(axis=0) - y.mean(axis=0)
    a = (x - x.mean(axis=0)) / np.sqrt(n - 1)
    b = (y - y.mean(axis=0)) / np.sqrt(m - 1)
    cross = scipy.linalg.svdvals(a @ b.T).sum()
    return float(step @ step + (a * a).sum() + (b * b).sum() - 2 * cross)


def _influence(x: np.ndarray, a: Moments, b: Moments) -> np.ndarray:
    """Influence of each row of `x` `[n, d]`, a sample with moments `a`, on frechet(a, b): `[n]`, mean near 0.

    It is 2 (mean_a - mean_b)^T u + u^T (I - T) u with u = x - mean_a and T the optimal transport map from a to b; I - T is the
    derivative of the distance in A. With A = L L^T and L^T B L = U s^2 U^T, u^T T u = |s^(1/2) U^T L^-1 u|^2.
    """
    values, vectors = scipy.linalg.eigh(a.covariance, check_finite=False)
    kept = values > values[-1] * 1e-12  # the directions in which the set varies
    factor = vectors[:, kept] * np.sqrt(values[kept])
    whiten = vectors[:, kept] / np.sqrt(values[kept])
    squares, rotation = scipy.linalg.eigh(factor.T @ b.covariance @ factor, check_finite=False)
    deviation = x - a.mean
    moved = deviation @ (whiten @ rotation) * np.clip(squares, 0, None) ** 0.25
    quadratic = (deviation**2).sum(axis=1) - (moved**2).sum(axis=1)
    influence: np.ndarray = 2 * deviation @ (a.mean - b.mean) + quadratic - quadratic.mean()
    return influence


def frechet_needs(dimension: int) -> int:
    """Vectors needed on each side to correct the bias of the Frechet distance."""
    return 2 * dimension


def frechet_estimate(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, level: float = 0.95, sources: SourceNames | None = None
) -> Estimate:
    """Squared Frechet distance between the laws behind `x` `[n, d]` and `y` `[m, d]`, bias-corrected, with interval.

    The plug-in value exceeds the truth by about c (1/n + 1/m) with a c that depends on the laws (Chong & Forsyth
    2019, arXiv 1911.07023). Twice the value minus the value at half the sizes cancels that term (Richardson
    extrapolation). The value at half size is the mean over pairs of disjoint random halves, for HALVINGS random halvings.
    The interval comes from the delta method, that is, from the variance of the influences of the vectors. With `sources`,
    only vectors of different sources count as independent: the halves are halves of the sources, and influences are
    summed within a source.

    Raises TooFewSamples below 2 d vectors a side, where the halves no longer span the space. With `sources`, the effective
    number of independent vectors must reach 2 d, and there must be 20 sources a side.
    """
    d = check_features("the first set", x).shape[1]
    check_features("the second set", y, d)
    n, m = len(x), len(y)
    what, needed = f"the Frechet distance in {d} dimensions", frechet_needs(d)
    if min(n, m) < needed:
        raise TooFewSamples(what, min(n, m), needed)
    from_x, from_y = (sources_of(sources and sources[i], len(side), what) for i, side in enumerate((x, y)))
    x, y = x.astype(np.float64), y.astype(np.float64)
    effective = min(from_x.effective_size(x), from_y.effective_size(y))
    if effective < needed:
        raise TooFewSamples(what, effective, needed, "independent samples")
    a, b = Moments.of(x), Moments.of(y)
    plug_in = frechet(a, b)
    at_half = []
    for _ in range(HALVINGS):
        first, second = ([Moments.of(half) for half in of.halves(z, rng)] for of, z in ((from_x, x), (from_y, y)))
        at_half += [frechet(p, q) for p in first for q in second]
    bias = float(np.mean(at_half)) - plug_in
    variance = from_x.variance_of_mean(_influence(x, a, b)) + from_y.variance_of_mean(_influence(y, b, a))
    half_width = float(ndtri(0.5 + level / 2) * np.sqrt(variance))
    value = plug_in - bias
    return Estimate(value, value - half_width, value + half_width, bias, n, m)
