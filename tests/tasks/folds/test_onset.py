"""The onset of memorization: read off a curve, and predicted for more examples."""

import math
from itertools import pairwise

import numpy as np
import pytest

from tasks.folds.onset import Curve, grid, predict, safe_length


def _curve(n: int, turn: float, seed: int = 0, until: float = 3.0, alarm: float | None = None) -> Curve:
    """A noisy curve whose held-out loss is lowest at `turn` images, up to `until` times as many."""
    images = grid(100, round(turn * until), 1.2)
    noise = np.random.default_rng([n, seed]).normal(size=len(images)) * 0.001
    loss = [0.5 + 0.1 * math.log(i / turn) ** 2 + e for i, e in zip(images, noise, strict=True)]
    return Curve(n, images, loss, [alarm is not None and i >= alarm for i in images], patience=3)


@pytest.mark.parametrize("turn", [300.0, 2000.0, 7777.0])
def test_the_turn_is_where_the_loss_is_lowest_also_between_evaluations(turn: float) -> None:
    assert _curve(60, turn).turn == pytest.approx(turn, rel=0.06)


def test_a_loss_that_falls_or_is_flat_has_not_turned() -> None:
    assert _curve(60, 2000, until=1.0).turn is None
    images = grid(100, 5000, 1.2)
    flat = [1.13 + 1e-4 * i for i in range(len(images))]
    assert Curve(60, images, flat, [False] * len(images), 3).turn is None


def test_a_loss_that_rises_from_the_beginning_has_turned_at_once() -> None:
    images = grid(100, 5000, 1.2)
    assert Curve(60, images, [1 + 0.02 * i for i in range(len(images))], [False] * len(images), 3).turn == 100


def test_a_single_alarm_is_not_an_onset() -> None:
    images = [100, 120, 144, 173, 207]
    assert Curve(60, images, [1.0] * 5, [False, True, False, True, True], 3).alarm == 173
    assert Curve(60, images, [1.0] * 5, [False, True, False, False, True], 3).alarm is None


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("folds", [3, 5])
def test_the_onset_of_everything_is_predicted_by_the_law(exponent: float, folds: int) -> None:
    n, at_n = 600, 30_000.0
    sizes = n * (folds - 1) // folds, n // folds
    large, small = (
        [
            _curve(size, at_n * (size / n) ** exponent * factor, seed)
            for seed, factor in enumerate(np.geomspace(0.9, 1 / 0.9, folds))
        ]
        for size in sizes
    )
    predicted = predict("turn", large, small, n)
    assert predicted.exponent == pytest.approx(exponent, abs=0.1)
    assert predicted.images == pytest.approx(at_n, rel=0.06) and not predicted.bound
    assert safe_length(predicted, 0.8, 10**6) == pytest.approx(0.8 * at_n, rel=0.06)
    assert safe_length(predicted, 0.8, 10_000) == 10_000


def test_an_onset_is_never_predicted_to_grow_faster_than_the_number_of_examples() -> None:
    predicted = predict("turn", [_curve(60, 4000)], [_curve(30, 1000)], 90)
    assert predicted.exponent == 1 and predicted.images == pytest.approx(6000, rel=0.06)


def test_trainings_that_ended_too_early_give_bounds() -> None:
    fell, turned = _curve(60, 3000, until=1.0), _curve(60, 3000)
    one = predict("turn", [fell, turned], [_curve(30, 1500)] * 2, 90)
    assert one.bound and one.images == pytest.approx(4500, rel=0.06)
    # Small ones without an onset do not say how much it grows: not at all, to be safe.
    two = predict("turn", [turned, turned], [_curve(30, 1500), _curve(30, 1500, until=1.0)], 90)
    assert two.exponent == 0 and two.images == pytest.approx(3000, rel=0.06)
    none = predict("alarm", [fell], [fell], 90)
    assert none.images is None and safe_length(none, 0.8, 7000) == 7000


def test_the_alarm_is_not_expected_to_come_later_with_more_examples() -> None:
    large, small = _curve(60, 9000, alarm=2000), _curve(30, 4500, alarm=1000)
    predicted = predict("alarm", [large], [small], 90)
    assert predicted.exponent == 0 and predicted.images == pytest.approx(large.alarm)


def test_the_grid_grows_by_its_ratio_and_ends_at_the_end() -> None:
    points = grid(32, 2000, 1.5)
    assert points[0] == 32 and points[-1] == 2000 and points == sorted(set(points))
    assert max(b / a for a, b in pairwise(points)) < 1.55
    assert grid(64, 64, 1.2) == [64] and grid(640, 64, 1.2) == [64]
