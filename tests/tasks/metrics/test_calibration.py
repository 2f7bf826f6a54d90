"""Calibration: temperature scaling recovers a known temperature, and the calibration error is what the paper defines."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.metrics import calibration


def _sampled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with exactly their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    chances = calibration.softmax(logits).cumsum(axis=1)
    return logits, (rng.random((count, 1)) > chances).sum(axis=1).clip(max=3)


@pytest.mark.parametrize("true", [0.5, 1.0, 4.0])
def test_a_known_temperature_is_found(true: float) -> None:
    logits, labels = _sampled(8_000, 0)
    assert calibration.temperature(logits * true, labels) == pytest.approx(true, rel=0.06)


def test_a_few_right_answers_do_not_make_it_infinitely_sure() -> None:
    labels = np.arange(40) % 2
    logits = np.where(np.arange(2) == labels[:, None], 1.0, -1.0)
    highest = calibration.softmax(logits / calibration.temperature(logits, labels)).max()
    assert highest == pytest.approx(41 / 42, abs=1e-3)


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([1, 1, 1, 0, 1, 1], bool)
    expected = (4 * abs(0.75 - 0.95) + 2 * abs(1 - 0.55)) / 6
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert calibration.expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0


def test_an_honest_classifier_is_at_the_floor_and_a_boastful_one_above() -> None:
    logits, labels = _sampled(2000, 1)
    right = logits.argmax(axis=1) == labels
    honest, boastful = (calibration.softmax(scale * logits).max(axis=1) for scale in (1, 3))
    floor = calibration.calibration_floor(honest)
    assert calibration.expected_calibration_error(honest, right) < 2 * floor
    assert calibration.expected_calibration_error(boastful, right) > 5 * floor
