"""The measured power, and the bound on the share of copies that follows from it."""

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.copy_share import honest_share
from tasks.evaluate.memorization.power import Power, by_disguise, lower, share_bound, upper


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (3, 20), (20, 20), (57, 180)])
def test_intervals_are_those_of_clopper_and_pearson(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert Power(successes, trials).interval() == pytest.approx((expected.low, expected.high))


def test_bounds_without_trials_say_nothing() -> None:
    assert lower(0, 0, 0.025) == 0 and upper(0, 0, 0.025) == 1
    assert share_bound(0, 100, Power(0, 0)) == 1


def test_the_bound_on_the_share_is_divided_by_the_power() -> None:
    """No copy among 1000 samples: at full power 0.37%, and five times that if a fifth of the copies is seen."""
    full, fifth = share_bound(0, 1000, Power(10**6, 10**6)), share_bound(0, 1000, Power(2 * 10**5, 10**6))
    assert full == pytest.approx(1 - 0.025 ** (1 / 1000), rel=1e-3)
    assert fifth == pytest.approx(5 * full, rel=0.01)
    # What a power of 2 in 10 allows to say; the verdict once said 0.3% here.
    assert share_bound(0, 1000, Power(2, 10)) > 0.14


def test_power_is_counted_by_disguise_in_the_order_of_planting() -> None:
    found = np.array([True, False, True, True])
    assert by_disguise(["b", "a", "b", "a"], found) == {"b": Power(2, 2), "a": Power(1, 2)}


@pytest.mark.parametrize(("share", "power"), [(0.0, 0.9), (0.01, 0.9), (0.01, 0.3), (0.05, 0.6)])
def test_the_bound_covers_the_share_of_copies(share: float, power: float) -> None:
    """Binomial samples and controls: the bound is below the true share in at most 5% of 2000 sets."""
    rng = np.random.default_rng(0)
    found, recognised = rng.binomial(180, power, 2000), rng.binomial(1000, share * power, 2000)
    bounds = np.array([share_bound(int(x), 1000, Power(int(f), 180)) for x, f in zip(recognised, found, strict=True)])
    assert (bounds >= share).mean() >= 0.95


@pytest.mark.slow
def test_the_bound_of_the_certificate_covers_the_share_of_copies() -> None:
    """200 sets of pictures' features with a known share of copies, through the whole test (python -m benchmarks.copy_share)."""
    assert np.mean([honest_share(rep)["covered"] for rep in range(200)]) >= 0.95
