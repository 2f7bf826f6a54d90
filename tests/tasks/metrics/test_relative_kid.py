"""The difference of two kernel distances: the closed form, and an interval that means what it says."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.kid import kid
from tasks.metrics.relative_kid import relative_kernel_distance


def test_relative_distance_is_the_difference_of_two_distances() -> None:
    rng = np.random.default_rng(0)
    new, old, reference = rng.normal(size=(40, 7)), rng.normal(0.3, 1, size=(40, 7)), rng.normal(size=(30, 7))
    found = relative_kernel_distance(new, old, reference)
    assert found.value == pytest.approx(kid(new, reference).value - kid(old, reference).value, rel=1e-9)


def test_standard_error_of_the_relative_distance_is_the_jackknife() -> None:
    rng = np.random.default_rng(1)
    new, old, reference = (rng.normal(size=(n, 3)) for n in (21, 21, 22))

    def value(rows: np.ndarray, columns: np.ndarray) -> float:
        both = (kid(sample[rows], reference[columns]).value for sample in (new, old))
        return next(both) - next(both)

    every, whole = np.arange(21), np.arange(22)
    pairs = np.array([value(np.delete(every, i), whole) for i in range(21)])
    others = np.array([value(every, np.delete(whole, j)) for j in range(22)])
    error = np.sqrt(20 * pairs.var() + 21 * others.var())
    found = relative_kernel_distance(new, old, reference)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error, rel=1e-6)


def test_equal_models_are_rarely_told_apart_and_a_better_one_often_is() -> None:
    rng = np.random.default_rng(2)
    false, right, trials = 0, 0, 200
    for _ in range(trials):
        noise, reference = rng.normal(size=(60, 4)), rng.normal(size=(50, 4))
        as_good = rng.normal(size=(60, 4))
        found = relative_kernel_distance(as_good, noise, reference)
        false += not found.low <= 0 <= found.high
        right += relative_kernel_distance(noise, noise + 1.0, reference).high < 0
    assert false / trials < 0.1  # 5 % is meant
    assert right / trials > 0.95


def test_pairs_that_share_their_noise_narrow_the_interval() -> None:
    rng = np.random.default_rng(3)
    old, reference = rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
    together = relative_kernel_distance(old + 0.05, old, reference)
    apart = relative_kernel_distance(rng.normal(size=(200, 4)) + 0.05, old, reference)
    assert together.high - together.low < 0.5 * (apart.high - apart.low)


def test_too_few_or_unpaired_samples_are_refused() -> None:
    x = np.zeros((19, 2)) + np.arange(19)[:, None]
    with pytest.raises(TooFewSamples):
        relative_kernel_distance(x, x, x)
    with pytest.raises(ValueError, match="19 and 18"):
        relative_kernel_distance(x, x[:18], x)
