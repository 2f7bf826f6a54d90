import numpy as np
import pytest

from tasks.evaluate.memorization.copy_test import (
    Enough,
    Verdict,
    fit_tail,
    judge,
    leak,
    split_exchangeability,
)


def ratios(n: int, dimension: float, seed: int) -> np.ndarray:
    """Ratios of the ideal law P(r <= t) = t^dimension."""
    return np.random.default_rng(seed).uniform(size=n) ** (1 / dimension)


def test_the_tail_fit_recovers_the_dimension() -> None:
    tail = fit_tail(ratios(20_000, 9.0, 0))
    assert tail.fits
    assert tail.dimension == pytest.approx(9.0, rel=0.05)


@pytest.mark.parametrize("size", [30, 300])
def test_p_values_are_valid_far_below_one_over_the_null_size(size: int) -> None:
    """P(p <= a) <= a for fresh ratios, over null sets and samples, with a down to a hundredth of 1/size."""
    reps, per = 400, 4000
    p = np.concatenate([fit_tail(ratios(size, 6, i)).p_values(ratios(per, 6, 10_000 + i)) for i in range(reps)])
    for a in (0.1, 1 / size, 0.1 / size, 0.01 / size):
        # Samples of one null share its errors: allow five standard errors of a mean over null sets.
        assert (p <= a).mean() <= a * (1 + 5 / np.sqrt(reps)) + 5 * np.sqrt(a / len(p))


def test_p_values_find_copies_that_ranks_cannot() -> None:
    tail = fit_tail(ratios(500, 10, 0))
    assert tail.p_values(np.array([0.1]))[0] < 1e-8
    assert tail.ratio_at(1e-5) == pytest.approx(float(np.exp(np.interp(-5, *_curve(tail)))), rel=1e-2)


def _curve(tail) -> tuple[np.ndarray, np.ndarray]:
    r = np.geomspace(1e-3, tail.start, 4000)
    return np.log10(tail.p_values(r)), np.log(r)


def test_a_null_without_a_power_law_falls_back_on_ranks() -> None:
    # One item in ten has an exact duplicate in another group: no power law reaches down to them.
    null = np.concatenate([ratios(1080, 8, 1), np.full(120, 1e-9)])
    tail = fit_tail(null)
    assert not tail.fits
    assert tail.p_values(np.array([1e-9]))[0] == pytest.approx(121 / 1201)
    assert tail.p_values(np.array([1e-10]))[0] == pytest.approx(1 / 1201)


def test_split_test_counts_distinct_originals() -> None:
    ratio = np.array([0.1, 0.1, 0.2, 0.9, 0.3])
    original = np.array([3, 3, 4, 5, 12])  # groups below 10 are in train
    result = split_exchangeability(ratio, original, 10, 5)
    assert (result.originals, result.in_train) == (3, 2)
    # Of 3 from 15 with 10 in train, 2 or 3 in train: 1 - C(10,1)C(5,2)/C(15,3) - C(5,3)/C(15,3).
    assert result.p == pytest.approx(1 - (10 * 10 + 10) / 455)
    assert split_exchangeability(np.ones(4), np.arange(4), 10, 5).p == 1.0


def test_split_test_needs_seven_originals_at_an_even_split() -> None:
    hits = np.arange(7)
    assert split_exchangeability(np.full(7, 0.01), hits, 500, 500).p < 0.01
    assert split_exchangeability(np.full(6, 0.01), hits[:6], 500, 500).p > 0.01


def test_leak_is_found_if_scenes_are_split_and_not_if_they_are_kept_together() -> None:
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(200), 5)
    x = (rng.normal(size=(200, 8))[scene] + rng.normal(0, 0.1, (1000, 8))).astype(np.float32)
    random = rng.uniform(size=1000) < 0.2
    by_scene = scene % 5 == 0
    leaking, kept = leak(x[random], x[~random]), leak(x[by_scene], x[~by_scene])
    assert leaking is not None and leaking.found
    assert kept is not None and not kept.found
    groups = scene[~by_scene]
    inside = leak(x[~by_scene], x[~by_scene], groups)
    assert inside is not None and not inside.found
    assert leak(x[:10], x) is None  # too few to say


def test_clean_needs_enough_data_and_copies_does_not() -> None:
    sure = {"heldout_leaks": False, "train_repeats": False, "enough": True, "powerful": True}
    assert judge(0.5, 0.01, **sure) is Verdict.CLEAN
    assert judge(0.5, 0.01, **{**sure, "enough": False}) is Verdict.TOO_FEW
    assert judge(0.5, 0.01, **{**sure, "powerful": False}) is Verdict.LOW_POWER
    assert judge(0.5, 0.01, **{**sure, "enough": False, "powerful": False}) is Verdict.TOO_FEW
    assert judge(0.001, 0.01, **{**sure, "enough": False, "powerful": False}) is Verdict.COPIES
    assert judge(0.001, 0.01, **{**sure, "heldout_leaks": True}) is Verdict.SPLIT_UNRELIABLE
    assert judge(0.001, 0.01, **{**sure, "train_repeats": True}) is Verdict.COPIES
    assert judge(0.5, 0.01, **{**sure, "train_repeats": True}) is Verdict.SPLIT_UNRELIABLE


def test_lacking_names_every_quantity_that_is_too_small() -> None:
    needed = Enough(groups=100, heldout=10, samples=50)
    assert needed.lacking(90, 10, 50) == []
    assert needed.lacking(90, 9, 49) == [
        "49 samples (50 are needed)",
        "99 groups of training and held-out items (100)",
        "9 groups of held-out items (10)",
    ]
