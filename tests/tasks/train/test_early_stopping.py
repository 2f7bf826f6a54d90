"""When a training stops and which weights it keeps: rules on the evaluations."""

import dataclasses
import json

import pytest

from diffusion_core.training.monitoring import NoiseScale
from tasks.config.optimisation import KeptAverage, Stop
from tasks.metrics.estimate import Estimate
from tasks.metrics.membership_inference import LevelGap
from tasks.train import early_stopping
from tasks.train.evaluation import SIGMAS, Evaluation


def _evaluation(
    images: int, val: float = 0.1, distance: tuple[float, float] | None = None, alarming: bool = False
) -> Evaluation:
    """Losses `val` times those of the baseline denoiser, a distance (value, half-width of its interval), one loss gap."""
    losses = [val * s**2 * 0.25 / (s**2 + 0.25) for s in SIGMAS]
    gap = LevelGap(sigma=0.1, train=0.1, heldout=0.2, auc=0.9, low=0.8 if alarming else 0.4, high=1.0, p=0.001)
    estimate = None
    if distance is not None:
        value, reach = distance
        estimate = Estimate(value, value - reach, value + reach, bias=0.0, n=20, m=20)
    return Evaluation(images, train=losses, val=losses, gaps=[gap], distance=estimate)


def test_relative_loss_is_one_for_a_denoiser_that_knows_only_the_variance() -> None:
    assert early_stopping.relative_loss(SIGMAS, [s**2 * 0.25 / (s**2 + 0.25) for s in SIGMAS]) == pytest.approx(1)


def test_the_weights_with_the_lowest_held_out_loss_are_kept() -> None:
    rows = [_evaluation(100, 0.5), _evaluation(200, 0.3), _evaluation(300, 0.4)]
    assert early_stopping.best(rows, SIGMAS, "validation_loss") == 1
    assert "image 200: the lowest denoising loss" in early_stopping.kept(rows, SIGMAS, "validation_loss")
    assert early_stopping.best(rows, SIGMAS, "last") == 2
    equal = [_evaluation(100), _evaluation(200)]
    assert early_stopping.best(equal, SIGMAS, "validation_loss") == 1


def test_the_nearest_samples_are_kept_if_distance_is_the_criterion() -> None:
    rows = [_evaluation(100, 0.5, (3.0, 0.1)), _evaluation(200, 0.3, (1.0, 0.1)), _evaluation(300, 0.1, (2.0, 0.1))]
    assert early_stopping.best(rows, SIGMAS, "distance") == 1
    assert "image 200: the smallest distance" in early_stopping.kept(rows, SIGMAS, "distance")


def test_the_last_before_the_first_alarm_is_kept() -> None:
    rows = [_evaluation(100, 0.5), _evaluation(200, 0.3), _evaluation(300, 0.1, alarming=True), _evaluation(400, 0.2)]
    keep = "before_memorizing"
    assert [early_stopping.best(rows[:n], SIGMAS, keep) for n in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert "image 200: the last before" in early_stopping.kept(rows, SIGMAS, keep)
    assert early_stopping.best(rows[2:], SIGMAS, keep) == 0 and "already" in early_stopping.kept(rows[2:], SIGMAS, keep)
    assert "image 200: the last, since no losses" in early_stopping.kept(rows[:2], SIGMAS, keep)
    unmeasured = [Evaluation(100, train=[0.1]), Evaluation(200, train=[0.1])]
    assert early_stopping.best(unmeasured, SIGMAS, keep) == 1
    assert "too few held-out examples" in early_stopping.kept(unmeasured, SIGMAS, keep)


def test_without_held_out_examples_the_last_are_kept_and_it_says_why() -> None:
    rows = [Evaluation(100, train=[0.1]), Evaluation(200, train=[0.1])]
    assert early_stopping.best(rows, SIGMAS, "validation_loss") == 1
    assert "too few held-out examples" in early_stopping.kept(rows, SIGMAS, "validation_loss")


def test_an_average_is_kept_at_the_last_evaluation() -> None:
    rows = [_evaluation(100, 0.1), _evaluation(200, 0.3)]
    assert early_stopping.best(rows, SIGMAS, KeptAverage(ema=0.07)) == 1
    assert early_stopping.kept(rows, SIGMAS, KeptAverage(ema=0.07)) == (
        "The weights are their average of relative width 0.07 at image 200."
    )


def test_memorization_stops_after_so_many_alarms_in_a_row() -> None:
    stop = Stop(memorizing=True, patience=2)
    signs = [False, True, False, True, True]
    rows = [_evaluation(100 * i, alarming=sign) for i, sign in enumerate(signs, 1)]
    assert [early_stopping.stop_reason(rows[:i], stop, SIGMAS) is not None for i in range(1, 6)] == [
        False,
        False,
        False,
        False,
        True,
    ]
    assert "2 evaluations in a row" in str(early_stopping.stop_reason(rows, stop, SIGMAS))
    assert early_stopping.stop_reason(rows, Stop(patience=2), SIGMAS) is None  # not asked for


def test_convergence_waits_until_nothing_falls_below_the_interval_of_the_best() -> None:
    stop = Stop(converged=True, patience=2)
    values = [4.0, 2.0, 1.0, 0.95, 0.92, 0.5, 0.45, 0.48]
    rows = [_evaluation(100 * i, distance=(value, 0.1)) for i, value in enumerate(values, 1)]
    found = [early_stopping.stop_reason(rows[:i], stop, SIGMAS) is not None for i in range(1, len(rows) + 1)]
    assert found == [False, False, False, False, True, False, False, True]


def test_a_loss_has_turned_when_it_stays_clearly_above_its_lowest_value() -> None:
    stop = Stop(turned=True, patience=2)
    rows = [_evaluation(100 * i, val) for i, val in enumerate([0.5, 0.4, 0.403, 0.402, 0.41, 0.39, 0.40, 0.41], 1)]
    found = [early_stopping.stop_reason(rows[:i], stop, SIGMAS) is not None for i in range(1, len(rows) + 1)]
    assert found == [False] * 7 + [True]
    assert early_stopping.stop_reason(rows, Stop(patience=2), SIGMAS) is None


def test_evaluations_survive_json() -> None:
    full = dataclasses.replace(_evaluation(100, 0.5, (1.0, 0.1)), noise_scale=NoiseScale(1.0, 2.0))
    for evaluation in (full, Evaluation(200, train=[0.1])):
        assert Evaluation.from_json(json.loads(json.dumps(evaluation.as_json()))) == evaluation
    assert Evaluation(200, train=[0.1]).as_json() == {"images": 200, "train": [0.1]}
