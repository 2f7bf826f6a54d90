from __future__ import annotations

import numpy as np
import pytest

from tasks.common.errors import DataError
from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.kid import kid
from tests.support.feature_sets import law


def kid_by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        k = (a @ b.T / a.shape[1] + 1) ** 3
        return float((k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)) if same else k.mean())

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_kid_is_the_mean_over_all_pairs_and_its_error_is_the_jackknife() -> None:
    x, y = law(31, 10, 0), law(24, 10, 1, shift=0.5)
    estimate = kid(x, y)
    assert estimate.value == pytest.approx(kid_by_pairs(x, y), rel=1e-10)
    without_x = np.array([kid_by_pairs(np.delete(x, i, 0), y) for i in range(31)])
    without_y = np.array([kid_by_pairs(x, np.delete(y, i, 0)) for i in range(24)])
    error = np.sqrt(30 * without_x.var() + 23 * without_y.var())
    assert estimate.high - estimate.value == pytest.approx(1.959964 * error, rel=1e-6)


def test_kid_by_sources_excludes_pairs_of_one_source_and_the_jackknife_deletes_whole_sources() -> None:
    rng = np.random.default_rng(3)
    names = [[str(i) for i in rng.permutation(np.repeat(np.arange(21), rng.integers(1, 4, 21)))] for _ in range(2)]
    x, y = (law(len(of), 5, seed, shift=0.3 * seed) for seed, of in enumerate(names))

    def by_pairs(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> float:
        def mean(a: np.ndarray, b: np.ndarray, allowed: np.ndarray) -> float:
            return float(((a @ b.T / a.shape[1] + 1) ** 3)[allowed].mean())

        within = [mean(a, a, of[:, None] != of) for a, of in ((x, of_x), (y, of_y))]
        return sum(within) - 2 * mean(x, y, np.ones((len(x), len(y)), bool))

    of_x, of_y = map(np.array, names)
    estimate = kid(x, y, sources=(names[0], names[1]))
    assert estimate.value == pytest.approx(by_pairs(x, y, of_x, of_y), rel=1e-10)
    without_x = np.array([by_pairs(x[of_x != s], y, of_x[of_x != s], of_y) for s in np.unique(of_x)])
    without_y = np.array([by_pairs(x, y[of_y != s], of_x, of_y[of_y != s]) for s in np.unique(of_y)])
    error = np.sqrt(20 * without_x.var() + 20 * without_y.var())
    assert estimate.high - estimate.value == pytest.approx(1.959964 * error, rel=1e-6)


def test_kid_of_samples_of_one_law_has_an_interval_that_contains_zero() -> None:
    inside = [kid(law(100, 10, 2 * i), law(100, 10, 2 * i + 1)) for i in range(30)]
    assert sum(e.low <= 0 <= e.high for e in inside) >= 26
    apart = kid(law(100, 10, 0), law(100, 10, 1, shift=1.0))
    assert apart.low > 0


def test_too_few_samples_and_other_widths_are_refused() -> None:
    with pytest.raises(TooFewSamples):
        kid(law(19, 20, 0), law(100, 20, 1))
    with pytest.raises(DataError, match="19 features a row where 20"):
        kid(law(30, 20, 0), law(30, 19, 1))
