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
    of the operations of two products. Where a has not full rank, U comes from its eigenvectors.
    """
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(a))  # several times as fast as scipy's
    if not failed:
        return scipy.linalg.lapack.dsygst(b.T, factor.numpy().T, itype=3, lower=0)[0]
    values, vectors = torch.linalg.eigh(torch.from_numpy(a))
    some = vectors * values.clamp(min=0).sqrt()
    return (some.T @ torch.from_numpy(b) @ some).numpy()


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the normal laws with these moments, in squared feature units.

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2)   (Heusel et al. 2017, eq. 6)

    The last trace is the sum of the square roots of the eigenvalues of U B U^T with A = U^T U: symmetric, hence no
    complex numbers and no matrix square root. Raises TooFewSamples if either set has fewer than 2 vectors.
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

    With no more rows than features the trace is the nuclear norm of the [n, m] product of the centred data, which
    never forms a d x d matrix; otherwise `frechet` of the moments.
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
    """How much each row of `x` `[n, d]`, drawn from the law of `a`, moves frechet(a, b): `[n]`, mean near 0.

    2 (mean_a - mean_b)^T u + u^T (I - T) u with u = x - mean_a and T the optimal transport map from a to b, by the
    derivative I - T of the distance in A. With A = L L^T and L^T B L = U s^2 U^T, u^T T u = |s^(1/2) U^T L^-1 u|^2.
    """
    values, vectors = scipy.linalg.eigh(a.covariance, check_finite=False)
    kept = values > values[-1] * 1e-12  # the directions in which the set varies at all
    factor = vectors[:, kept] * np.sqrt(values[kept])
    whiten = vectors[:, kept] / np.sqrt(values[kept])
    squares, rotation = scipy.linalg.eigh(factor.T @ b.covariance @ factor, check_finite=False)
    deviation = x - a.mean
    moved = deviation @ (whiten @ rotation) * np.clip(squares, 0, None) ** 0.25
    quadratic = (deviation**2).sum(axis=1) - (moved**2).sum(axis=1)
    return 2 * deviation @ (a.mean - b.mean) + quadratic - quadratic.mean()


def frechet_needs(dimension: int) -> int:
    """Vectors a side below which the bias of the Frechet distance cannot be corrected."""
    return 2 * dimension


def frechet_estimate(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, level: float = 0.95, sources: SourceNames | None = None
) -> Estimate:
    """Squared Frechet distance between the laws behind `x` `[n, d]` and `y` `[m, d]`, bias-corrected, with interval.

    The plug-in value exceeds the truth by about c (1/n + 1/m) with a c that depends on the laws (Chong & Forsyth
    2019, arXiv 1911.07023), so that twice the value minus the value at half the sizes cancels it (Richardson). The
    value at half size is the mean over the pairs of disjoint random halves, for HALVINGS random halvings. The interval
    is the delta method's: the variance of the influence of each vector. With `sources` only vectors of different sources
    count as independent: the halves are halves of the sources, and influences are summed within a source.

    Raises TooFewSamples below 2 d vectors a side, where the halves no longer span the space; with `sources`, below as many
    vectors as 2 d independent ones are worth, and below 20 sources.
    """
    d = check_features("the first set", x).shape[1]
    check_features("the second set", y, d)
    n, m = len(x), len(y)
    what, needed = f"the Frechet distance in {d} dimensions", frechet_needs(d)
    if min(n, m) < needed:
        raise TooFewSamples(what, min(n, m), needed)
    from_x, from_y = (sources_of(sources and sources[i], len(some), what) for i, some in enumerate((x, y)))
    x, y = x.astype(np.float64), y.astype(np.float64)
    worth = min(from_x.worth(x), from_y.worth(y))
    if worth < needed:
        raise TooFewSamples(what, worth, needed, "independent samples")
    a, b = Moments.of(x), Moments.of(y)
    plug_in = frechet(a, b)
    at_half = []
    for _ in range(HALVINGS):
        first, second = ([Moments.of(half) for half in of.halves(z, rng)] for of, z in ((from_x, x), (from_y, y)))
        at_half += [frechet(p, q) for p in first for q in second]
    bias = float(np.mean(at_half)) - plug_in
    variance = from_x.variance_of_mean(_influence(x, a, b)) + from_y.variance_of_mean(_influence(y, b, a))
    reach = float(ndtri(0.5 + level / 2) * np.sqrt(variance))
    value = plug_in - bias
    return Estimate(value, value - reach, value + reach, bias, n, m)
