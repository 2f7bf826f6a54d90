"""Averages of weights: their profiles, and post-hoc averages from stored ones."""

import pytest
import torch

from diffusion_core.training.ema import Average, mix_averages, post_hoc_shares, power, power_gamma


def test_power_average_has_its_profile():
    """Averaging the clock itself: the mean of t^gamma on (0, T) is T (gamma + 1) / (gamma + 2)."""
    for width in (0.05, 0.1, 0.2):
        average = Average({"t": torch.zeros(1, dtype=torch.float64)}, power(width))
        for nimg in range(10, 50_001, 10):
            average.update({"t": torch.full((1,), float(nimg), dtype=torch.float64)}, nimg, 10)
        gamma = power_gamma(width)
        assert float(average.weights["t"]) == pytest.approx(50_000 * (gamma + 1) / (gamma + 2), rel=1e-3)


def test_power_exponent_is_the_published_one():
    # arXiv 2312.02696, below eq. 2: sigma_rel 0.05 and 0.10 have gamma 16.97 and 6.94.
    assert power_gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_gamma(0.10) == pytest.approx(6.94, abs=0.005)
    with pytest.raises(ValueError, match="between 0"):
        power_gamma(0.5)


def test_post_hoc_average_approximates_one_computed_while_training():
    """Weights on a smooth random path; two averages stored at 8 times reproduce a third one closely."""
    generator = torch.Generator().manual_seed(0)
    total, batch = 20_000, 20
    moves = torch.randn(total // batch, 6, generator=generator, dtype=torch.float64).cumsum(0) / 30
    stored = {0.05: Average({"w": moves[0]}, power(0.05)), 0.10: Average({"w": moves[0]}, power(0.10))}
    wanted = Average({"w": moves[0]}, power(0.15))
    snapshots, tensors = [], []
    for i, weights in enumerate(moves, 1):
        for width, average in stored.items():
            average.update({"w": weights}, i * batch, batch)
            if i * batch % (total // 8) == 0:
                snapshots.append((i * batch, width))
                tensors.append({"w": average.weights["w"].clone()})
        wanted.update({"w": weights}, i * batch, batch)
    ours = mix_averages(tensors, post_hoc_shares(snapshots, total, 0.15))["w"]
    nearest = min(float((stored_average["w"] - wanted.weights["w"]).norm()) for stored_average in tensors)
    assert float((ours - wanted.weights["w"]).norm()) < 0.1 * nearest
    assert float(post_hoc_shares(snapshots, total, 0.15).sum()) == pytest.approx(1, abs=0.02)
