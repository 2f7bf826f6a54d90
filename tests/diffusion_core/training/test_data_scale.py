"""Estimates of the data's scale, on data with known answers."""

import math

import pytest
import torch

from diffusion_core import rng
from diffusion_core.sampling.langevin import langevin
from diffusion_core.sampling.loop import Estimate
from diffusion_core.schedules import sigma_level
from diffusion_core.training import data_scale as measure
from diffusion_core.training.data_scale import annealed_levels, langevin_rate, level_ratio


def normal(sds: torch.Tensor, count: int = 20_000) -> torch.Tensor:
    return rng.normal((len(sds),), 0, torch.arange(count)) * sds


def test_scale_of_isotropic_data_is_one_logistic():
    scale = measure.data_scale(normal(torch.full((20,), 0.5)))
    assert scale.sd == pytest.approx(0.5, rel=0.01)
    assert scale.mean == pytest.approx(math.log(0.5), abs=0.01)
    assert scale.std == pytest.approx(math.pi / math.sqrt(12), abs=0.005)


def test_scale_weighs_each_direction_by_its_standard_deviation():
    """Ten directions of standard deviation 0.1 and ten of 2, rotated: weights 1/21 and 20/21."""
    rotation = torch.linalg.qr(rng.normal((20,), 1, torch.arange(20))).Q
    scale = measure.data_scale(normal(torch.tensor([0.1] * 10 + [2.0] * 10)) @ rotation)
    low, high = math.log(0.1), math.log(2)
    mean = (low + 20 * high) / 21
    assert scale.sd == pytest.approx(math.sqrt((0.01 + 4) / 2), rel=0.01)
    assert scale.mean == pytest.approx(mean, abs=0.02)
    between = ((low - mean) ** 2 + 20 * (high - mean) ** 2) / 21
    assert scale.std == pytest.approx(math.sqrt(between + math.pi**2 / 12), abs=0.01)


def test_scale_of_pictures_with_a_natural_spectrum_lies_between_edm_and_edm2():
    """Amplitude as 1 / frequency, 32 x 32, standard deviation 0.5; in the cosine basis, so that the directions are known."""
    frequency = torch.fft.fftfreq(32).mul(32)
    amplitude = 1 / torch.hypot(frequency[:, None], frequency).clamp(min=0.5).flatten()
    amplitude *= 0.5 / amplitude.square().mean().sqrt()
    # As many examples as directions, orthogonal, so that the sample's covariance is the law's.
    basis = torch.linalg.qr(rng.normal((1024,), 0, torch.arange(1024)).double()).Q * math.sqrt(1024)
    x0 = torch.cat([basis, -basis]) * amplitude
    scale = measure.data_scale(x0)
    assert scale.sd == pytest.approx(0.5, rel=1e-6)
    assert -1.2 < scale.mean < -0.4 and 1.0 < scale.std < 1.3


def test_scale_is_equivariant_and_refuses_constant_data():
    x0 = normal(torch.linspace(0.1, 1, 8), 500).reshape(500, 2, 4)
    one, ten = measure.data_scale(x0), measure.data_scale(10 * x0)
    assert ten.sd == pytest.approx(10 * one.sd) and ten.std == pytest.approx(one.std)
    assert ten.mean - one.mean == pytest.approx(math.log(10))
    with pytest.raises(ValueError, match="constant"):
        measure.data_scale(torch.ones(5, 3))


def test_training_outlook_counts_passes():
    text = measure.training_outlook(1000, 150_000, measure.DataScale(0.5, -1.2, 1.2))
    assert "1,000 examples, each seen 150.0 times in 150,000 images" in text
    assert "about 2,200,000 images" in text and "ends before that" in text and "sigma_data 0.5" in text
    assert "is longer" in measure.training_outlook(50, 150_000)


@pytest.mark.parametrize("coordinates", [99, 3072])
def test_half_of_the_noise_of_a_level_is_likely_at_the_next(coordinates):
    """By the lengths of simulated noise: within three standard deviations of the mean length at the noisier level."""
    ratio = level_ratio(coordinates)
    torch.manual_seed(0)
    lengths = torch.distributions.Chi2(coordinates).sample((100_000,)).sqrt()
    share = ((lengths - coordinates**0.5 * ratio).abs() < 3 * ratio / 2**0.5).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.03)
    if coordinates == 3072:
        assert ratio == pytest.approx(5000 ** (1 / 231), abs=0.003)  # CIFAR-10 in the paper: 232 levels from 50 to 0.01
    assert level_ratio(2) == 2


def test_the_levels_span_the_data_and_the_steps_keep_their_noise():
    x0 = torch.randn(300, 4, 5, generator=torch.Generator().manual_seed(0))
    found = annealed_levels(x0, 0.01)
    assert found.largest == pytest.approx(float(torch.cdist(x0.flatten(1), x0.flatten(1)).max()), rel=1e-5)
    ratio = (found.largest / 0.01) ** (1 / (found.levels - 1))
    assert level_ratio(20) * 0.98 < ratio <= level_ratio(20)
    rate = langevin_rate(ratio, 20)
    x, sigma = ratio * 0.3 * torch.randn(100_000, 1, generator=torch.Generator().manual_seed(1)).double(), 0.3
    level = sigma_level(torch.tensor(sigma, dtype=torch.float64))
    noise = iter(torch.randn(20, 100_000, 1, generator=torch.Generator().manual_seed(2)).double())
    for _ in range(20):
        x = langevin(rate)([Estimate(level, x, torch.zeros_like(x))], level, None, noise)
    assert float(x.std()) == pytest.approx(sigma, rel=0.1)
    with pytest.raises(ValueError, match="differ"):
        annealed_levels(torch.ones(3, 2))
