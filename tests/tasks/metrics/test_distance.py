import numpy as np
import pytest
import scipy.linalg

from tasks.common.errors import DataError
from tasks.metrics.distance import frechet, frechet_estimate, frechet_of, kid
from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.moments import Moments
from tasks.metrics.sources import sources_of


def law(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(0, 1 / np.sqrt(d), (d, d))
    return np.log1p(np.exp(rng.normal(shift, 1, (n, d)) @ mix))


def by_square_root(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel's formula as it is printed, with scipy's matrix square root."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    step = x.mean(0) - y.mean(0)
    return float(step @ step + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real))


def test_equal_covariances_leave_the_distance_of_the_means() -> None:
    x = law(500, 8, 0)
    step = np.arange(8.0)
    assert frechet_of(x, x + step) == pytest.approx(step @ step, rel=1e-9)


def test_one_dimension_has_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 3, (300, 1)), rng.normal(-1, 0.5, (200, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_of(x, y) == pytest.approx(expected, rel=1e-10)


def test_agrees_with_the_matrix_square_root() -> None:
    x, y = law(400, 30, 1), law(300, 30, 2, shift=0.3)
    assert frechet_of(x, y) == pytest.approx(by_square_root(x, y), rel=1e-8)


def test_form_for_few_samples_agrees_with_the_form_for_many() -> None:
    x, y = law(40, 60, 1), law(50, 60, 2, shift=0.3)
    assert frechet_of(x, y) == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_flat_directions_are_no_obstacle() -> None:
    x, y = law(200, 6, 1), law(200, 6, 2)
    flat = [np.hstack([s, np.zeros((200, 2)), s[:, :1]]) for s in (x, y)]
    # The repeated column adds what it adds to the law; the reference works in the space where both live.
    assert frechet_of(*flat) == pytest.approx(by_square_root(*flat), rel=1e-5)


def test_correction_removes_the_bias_and_the_interval_covers() -> None:
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


def test_too_few_samples_are_refused_and_told_how_many_are_needed() -> None:
    with pytest.raises(TooFewSamples, match="at least 40 samples on each side, and there are 39") as error:
        frechet_estimate(law(39, 20, 0), law(100, 20, 1), np.random.default_rng(0))
    assert error.value.needed == 40
    with pytest.raises(TooFewSamples):
        kid(law(19, 20, 0), law(100, 20, 1))
    with pytest.raises(DataError, match="19 features a row where 20"):
        kid(law(30, 20, 0), law(30, 19, 1))


def kid_by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        k = (a @ b.T / a.shape[1] + 1) ** 3
        return float((k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)) if same else k.mean())

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_kid_is_the_mean_over_all_pairs_and_its_error_the_jackknife() -> None:
    x, y = law(31, 10, 0), law(24, 10, 1, shift=0.5)
    estimate = kid(x, y)
    assert estimate.value == pytest.approx(kid_by_pairs(x, y), rel=1e-10)
    without_x = np.array([kid_by_pairs(np.delete(x, i, 0), y) for i in range(31)])
    without_y = np.array([kid_by_pairs(x, np.delete(y, i, 0)) for i in range(24)])
    error = np.sqrt(30 * without_x.var() + 23 * without_y.var())
    assert estimate.high - estimate.value == pytest.approx(1.959964 * error, rel=1e-6)


def test_kid_of_sources_leaves_out_their_own_pairs_and_deletes_them_whole() -> None:
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


def test_a_source_for_each_vector_is_as_good_as_none() -> None:
    x, y = law(61, 6, 0), law(70, 6, 1, shift=0.5)
    each = [f"{i:02d}" for i in range(61)], [f"{i:02d}" for i in range(70)]
    assert kid(x, y, sources=each) == kid(x, y)
    none, named = (frechet_estimate(x, y, np.random.default_rng(0), sources=names) for names in (None, each))
    assert named == none
    # The variance of a mean of independent values, by the book.
    values = np.random.default_rng(0).normal(size=50)
    assert sources_of(None, 50, "").variance_of_mean(values) == pytest.approx(values.var(ddof=1) / 50, rel=1e-12)
    # Every vector twice: twice the numbers, and not more known.
    twice = sources_of([str(i // 2) for i in range(100)], 100, "")
    assert twice.variance_of_mean(np.repeat(values, 2)) == pytest.approx(values.var(ddof=1) / 50, rel=1e-12)
    assert twice.worth(np.repeat(values[:, None], 2, axis=0)) == 50
    with pytest.raises(ValueError, match="3 sources were given for 61 vectors"):
        kid(x, y, sources=(["a", "b", "c"], each[1]))


def test_kid_is_near_zero_for_one_law_and_its_interval_says_so() -> None:
    inside = [kid(law(100, 10, 2 * i), law(100, 10, 2 * i + 1)) for i in range(30)]
    assert sum(e.low <= 0 <= e.high for e in inside) >= 26
    apart = kid(law(100, 10, 0), law(100, 10, 1, shift=1.0))
    assert apart.low > 0
