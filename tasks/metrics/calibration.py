"""How far a classifier's confidence can be trusted.

References:
    Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature scaling, expected calibration error).
    Platt 1999, "Probabilistic Outputs for Support Vector Machines".
"""

from __future__ import annotations

import numpy as np

BINS = 10


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 `[n, k]` of logits `[n, k]`."""
    powers: np.ndarray = np.exp(np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T between 1/20 and 20 with the smallest cross-entropy of softmax(logits / T), `[n, k]`, with the labels `[n]`.

    The labels are taken to be right with probability (n + 1) / (n + 2), as in Platt 1999: without that, n right answers would
    make the classifier infinitely sure. In 1 / T the cross-entropy is convex, so golden sections in log T find the minimum.
    """
    n, k = logits.shape
    targets = np.full((n, k), 1 / (n + 2) / max(k - 1, 1))
    targets[np.arange(n), labels] = (n + 1) / (n + 2)

    def cross_entropy(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        log_sum = np.log(np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1)) + scaled.max(axis=1)
        return float((log_sum - (targets * scaled).sum(axis=1)).mean())

    low, high = -np.log(20.0), np.log(20.0)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if cross_entropy(left) < cross_entropy(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """The mean over examples of |accuracy - mean confidence| of their bin; `bins` bins of equal width in 0..1."""
    place = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=np.asarray(correct, np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_floor(confidence: np.ndarray, draws: int = 200, seed: int = 0) -> float:
    """The expected calibration error of a perfectly calibrated classifier with these confidences, float64 `[n]`.

    It is above 0, since in a finite sample the share of right answers in a bin differs from its expectation.
    """
    rng = np.random.default_rng(seed)
    errors = [expected_calibration_error(confidence, rng.random(len(confidence)) < confidence) for _ in range(draws)]
    return float(np.mean(errors))
