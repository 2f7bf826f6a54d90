import numpy as np
import pytest

from tasks.common.errors import DataError
from tasks.metrics.moments import Moments


def test_merged_shards_equal_one_pass() -> None:
    x = np.random.default_rng(0).normal(5, 2, (1000, 7)) + 1e4  # a large offset loses digits in naive sums
    whole = Moments.of(x)
    merged = Moments.of(x[:13])
    for part in np.array_split(x[13:], 5):
        merged = merged.merge(Moments.of(part))
    assert merged.n == 1000
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-10)


def test_features_that_are_not_finite_are_refused_with_their_row() -> None:
    x = np.zeros((5, 3))
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="1 of 5 rows are not finite, the first is row 3"):
        Moments.of(x)
    with pytest.raises(DataError, match="at least one row"):
        Moments.of(np.zeros((0, 3)))
