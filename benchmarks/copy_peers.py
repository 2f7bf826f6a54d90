"""Published memorization statistics, implemented from their papers, for comparison with the project's verdict.

Each takes float arrays train `[n, d]`, heldout `[m, d]`, generated `[g, d]` and returns one number that decreases the
more is copied. None of them comes with a threshold; the benchmark gives each the best one, computed from fresh sets.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from scipy.stats import mannwhitneyu

from tasks.metrics.neighbours import search


def third_rule(train: np.ndarray, heldout: np.ndarray, generated: np.ndarray) -> float:
    """Share of samples with d1/d2 < 1/3 (Yoon et al. 2023; Gu et al. 2023), negated; ties are broken by
    the smallest ratio."""
    distance = search(generated, train, 2).distance
    ratio = distance[:, 0] / distance[:, 1]
    return float(-(ratio < 1 / 3).mean() + 1e-6 * ratio.min())


def authenticity(train: np.ndarray, heldout: np.ndarray, generated: np.ndarray) -> float:
    """AuthPct (Alaa et al. 2022): share of samples whose distance to the nearest training item exceeds that item's
    distance to the rest of the training set."""
    nearest = search(generated, train, 1)
    spacing = search(train, train, 2).distance[:, 1]
    return float((nearest.distance[:, 0] > spacing[nearest.index[:, 0]]).mean())


def data_copying(train: np.ndarray, heldout: np.ndarray, generated: np.ndarray) -> float:
    """C_T (Meehan et al. 2020): z-score of the Mann-Whitney test that samples are closer to the training set than
    held-out items are, in cells around training items, averaged with the share of held-out items as weight."""
    cells = train[:: max(1, len(train) // 5)][:5]
    cell_of_heldout = search(heldout, cells, 1).index[:, 0]
    cell_of_generated = search(generated, cells, 1).index[:, 0]
    d_heldout = search(heldout, train, 1).distance[:, 0]
    d_generated = search(generated, train, 1).distance[:, 0]
    total = weight = 0.0
    for cell in range(len(cells)):
        a, b = d_generated[cell_of_generated == cell], d_heldout[cell_of_heldout == cell]
        if len(a) < 5 or len(b) < 5:
            continue
        u = mannwhitneyu(a, b, alternative="less").statistic
        deviation = np.sqrt(len(a) * len(b) * (len(a) + len(b) + 1) / 12)
        total += len(b) * (u - len(a) * len(b) / 2) / deviation
        weight += len(b)
    return total / weight if weight else 0.0


def likelihood_gap(train: np.ndarray, heldout: np.ndarray, generated: np.ndarray) -> float:
    """The generalisation gap of FLD (Jiralerspong et al. 2023): a mixture of isotropic normals centred on the samples,
    each width fitted to the training set by expectation-maximisation; log-likelihood of held-out minus of train."""
    d = train.shape[1]

    def squared(x: np.ndarray) -> np.ndarray:
        squares: np.ndarray = (x**2).sum(1)[:, None] - 2 * x @ generated.T + (generated**2).sum(1)[None]
        clipped: np.ndarray = np.maximum(squares, 1e-12)
        return clipped

    to_train, to_heldout = squared(train.astype(np.float64)), squared(heldout.astype(np.float64))
    variance = np.full(len(generated), to_train.min(axis=1).mean() / d)
    for _ in range(10):
        log = -to_train / (2 * variance) - d / 2 * np.log(variance)
        share = np.exp(log - logsumexp(log, axis=1, keepdims=True))
        mass = share.sum(axis=0)
        fitted = (share * to_train).sum(axis=0) / np.maximum(d * mass, 1e-12)
        variance = np.where(mass > 1e-6, np.maximum(fitted, 1e-6), variance)

    def likelihood(to: np.ndarray) -> float:
        return float(logsumexp(-to / (2 * variance) - d / 2 * np.log(variance), axis=1).mean() / d)

    return likelihood(to_heldout) - likelihood(to_train)


def memorization_informed(train: np.ndarray, heldout: np.ndarray, generated: np.ndarray) -> float:
    """The penalty of MiFID (Bai et al. 2021): mean over samples of the smallest cosine distance to a training item."""
    unit_train = train / np.linalg.norm(train, axis=1, keepdims=True)
    unit_generated = generated / np.linalg.norm(generated, axis=1, keepdims=True)
    return float((1 - np.abs(unit_generated @ unit_train.T)).min(axis=1).mean())


def mean_distance(train: np.ndarray, heldout: np.ndarray, generated: np.ndarray) -> float:
    """Mean distance of samples to the nearest training item, divided by that of held-out items."""
    return float(search(generated, train, 1).distance.mean() / search(heldout, train, 1).distance.mean())


PEERS = {
    "third_rule": third_rule,
    "authpct": authenticity,
    "c_t": data_copying,
    "fld_gap": likelihood_gap,
    "mifid_penalty": memorization_informed,
    "mean_d1": mean_distance,
}
