from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.frechet import frechet, frechet_estimate, frechet_of
from tasks.metrics.moments import Moments
from tests.support.feature_sets import law


def by_square_root(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel's formula as it is printed, with scipy's matrix square root."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    step = x.mean(0) - y.mean(0)
    return float(step @ step + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real))


def test_with_equal_covariances_the_distance_is_that_of_the_means() -> None:
    x = law(500, 8, 0)
    step = np.arange(8.0)
    assert frechet_of(x, x + step) == pytest.approx(step @ step, rel=1e-9)


def test_the_distance_in_one_dimension_equals_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 3, (300, 1)), rng.normal(-1, 0.5, (200, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_of(x, y) == pytest.approx(expected, rel=1e-10)


def test_the_distance_agrees_with_the_matrix_square_root() -> None:
    x, y = law(400, 30, 1), law(300, 30, 2, shift=0.3)
    assert frechet_of(x, y) == pytest.approx(by_square_root(x, y), rel=1e-8)


def test_the_form_for_few_samples_agrees_with_the_form_for_many() -> None:
    x, y = law(40, 60, 1), law(50, 60, 2, shift=0.3)
    assert frechet_of(x, y) == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_singular_covariances_are_accepted() -> None:
    x, y = law(200, 6, 1), law(200, 6, 2)
    flat = [np.hstack([s, np.zeros((200, 2)), s[:, :1]]) for s in (x, y)]
    # The repeated column adds what it adds to the law; the reference works in the space where both live.
    assert frechet_of(*flat) == pytest.approx(by_square_root(*flat), rel=1e-5)


def test_the_correction_removes_the_bias_and_the_interval_covers_the_truth() -> None:
    d, n, reps = 12, 60, 60
    truth = frechet_of(law(200_000, d, 1), law(200_000, d, 2, shift=0.2))
    estimates = [
        frechet_estimate(law(n, d, 10 + 2 * i), law(n, d, 11 + 2 * i, shift=0.2), np.random.default_rng(i))
        for i in range(reps)
    ]
    values = np.array([e.value for e in estimates])
    raw = np.array([e.value + e.bias for e in estimates])
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(reps) + 0.03 * (raw.mean() - truth)
    assert abs(values.mean() - truth) < 0.15 * (raw.mean() - truth)
    assert np.mean([e.low <= truth <= e.high for e in estimates]) >= 0.9


def test_too_few_samples_are_refused_with_the_number_needed() -> None:
    with pytest.raises(TooFewSamples, match="at least 40 samples on each side, and there are 39") as error:
        frechet_estimate(law(39, 20, 0), law(100, 20, 1), np.random.default_rng(0))
    assert error.value.needed == 40
