from __future__ import annotations

import numpy as np
import pytest

from tasks.metrics.frechet import frechet_estimate
from tasks.metrics.kid import kid
from tasks.metrics.sources import sources_of
from tests.support.feature_sets import law


def test_with_one_vector_per_source_the_result_is_that_without_sources() -> None:
    x, y = law(61, 6, 0), law(70, 6, 1, shift=0.5)
    each = [f"{i:02d}" for i in range(61)], [f"{i:02d}" for i in range(70)]
    assert kid(x, y, sources=each) == kid(x, y)
    without, with_names = (frechet_estimate(x, y, np.random.default_rng(0), sources=names) for names in (None, each))
    assert with_names == without
    with pytest.raises(ValueError, match="3 sources were given for 61 vectors"):
        kid(x, y, sources=(["a", "b", "c"], each[1]))


def test_variance_of_the_mean_of_independent_values_is_their_variance_over_n() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert sources_of(None, 50, "").variance_of_mean(values) == pytest.approx(values.var(ddof=1) / 50, rel=1e-12)


def test_repeating_every_vector_adds_no_information() -> None:
    values = np.random.default_rng(0).normal(size=50)
    twice = sources_of([str(i // 2) for i in range(100)], 100, "")
    assert twice.variance_of_mean(np.repeat(values, 2)) == pytest.approx(values.var(ddof=1) / 50, rel=1e-12)
    assert twice.effective_size(np.repeat(values[:, None], 2, axis=0)) == 50
