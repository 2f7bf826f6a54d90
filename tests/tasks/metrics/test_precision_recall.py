import numpy as np
import pytest

from tasks.metrics import precision_recall
from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.precision_recall import precision_recall_density_coverage


def by_definition(x: np.ndarray, y: np.ndarray, k: int, kd: int) -> tuple[float, float, float, float]:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)

    def radii(a: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(a, a), axis=1)[:, k]

    to_real = distances(x, y)
    precision = (to_real <= radii(y, k)[None]).any(1).mean()
    recall = (to_real.T <= radii(x, k)[None]).any(1).mean()
    inside = to_real <= radii(y, kd)[None]
    return precision, recall, inside.sum() / (kd * len(x)), inside.any(0).mean()


def test_precision_and_recall_equal_their_definition_for_every_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (310, 12)).astype(np.float32)
    y = rng.normal(0.3, 1.2, (270, 12)).astype(np.float32)
    expected = by_definition(x, y, 3, 5)
    assert tuple(precision_recall_density_coverage(x, y)) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(precision_recall, "BLOCK", 64)
    assert tuple(precision_recall_density_coverage(x, y)) == pytest.approx(expected, abs=1e-12)


def test_a_set_compared_with_itself_has_precision_and_recall_one() -> None:
    x = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    found = precision_recall_density_coverage(x, x)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)


def test_a_collapsed_generator_has_high_precision_and_low_recall() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 4)).astype(np.float32)
    collapsed = rng.normal(0, 1e-3, (300, 4)).astype(np.float32)
    found = precision_recall_density_coverage(collapsed, real)
    assert found.precision > 0.9
    assert found.recall < 0.05
    assert found.coverage < 0.2


def test_fewer_vectors_than_neighbours_are_refused() -> None:
    x = np.zeros((5, 2), np.float32)
    with pytest.raises(TooFewSamples, match="at least 6"):
        precision_recall_density_coverage(x, x)


def test_vectors_on_the_border_of_a_ball_are_inside() -> None:
    """Coordinates far from the origin, distances that float32 products cannot tell from the radii."""
    rng = np.random.default_rng(0)
    real = (1000 + rng.integers(0, 3, (150, 8))).astype(np.float32)  # many equal distances, many on a border
    generated = np.concatenate([real[:60], real[60:110] + np.float32(2e-4), real[:40] + np.float32(1)])
    expected = by_definition(generated, real, 3, 5)
    assert tuple(precision_recall_density_coverage(generated, real)) == expected
