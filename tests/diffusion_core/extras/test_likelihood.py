"""Decoders are probability laws, the bound of discrete data is their entropy, and chosen levels make it precise."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from benchmarks import mixture
from diffusion_core import schedules
from diffusion_core.extras import closed_form, likelihood
from diffusion_core.extras.vdm import bits_per_dim
from diffusion_core.schedules import Level, logsnr_level, sigma_level

VALUES = torch.linspace(-1, 1, 256, dtype=torch.float64)
SHARES = torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2], dtype=torch.float64)  # of five values
ENTROPY = -float((SHARES * SHARES.log2()).sum())


def level(sigma: float) -> Level:
    return sigma_level(torch.tensor(sigma, dtype=torch.float64))


@pytest.mark.parametrize("sigma", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("mean", [-1.4, -0.998, 0.3, 1.0])
@pytest.mark.parametrize("decoder", [likelihood.discrete_decoder(), likelihood.logistic_decoder()])
def test_a_discrete_decoder_is_a_law_of_the_values(decoder: likelihood.Decoder, mean: float, sigma: float) -> None:
    """All 256 probabilities sum to 1, none is 0 however far away, and their mean is that of the estimate."""
    at = torch.full((256, 1), mean, dtype=torch.float64)
    log_p = decoder(VALUES[:, None], at, level(sigma), at)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9) and bool(log_p.isfinite().all())
    if sigma == 0.05 and abs(mean) < 0.5:
        assert float((log_p.exp() * VALUES).sum()) == pytest.approx(mean, abs=1e-3)


def test_far_tails_of_the_normal_decoder_fall_steadily() -> None:
    """At 40 standard deviations and more both ends of an interval have the same distribution function."""
    at = torch.full((256, 1), -1.0, dtype=torch.float64)
    log_p = likelihood.discrete_decoder()(VALUES[:, None], at, level(0.02), at)
    assert bool((log_p.diff()[1:] < 0).all()) and float(log_p[-2]) == pytest.approx(
        -0.5 * (1.988 / 0.02) ** 2, rel=0.02
    )


def test_a_logistic_mixture_of_two_channels_is_a_law_of_their_values() -> None:
    """All pairs of five values sum to 1, whatever the network returns, and the second channel depends on the first."""
    grid = torch.linspace(-1, 1, 5, dtype=torch.float64)
    pairs = torch.stack([torch.stack(pair) for pair in product(grid, grid)])  # [25, 2]
    centre = torch.tensor([[0.2, -0.3]], dtype=torch.float64).expand(25, -1)
    for components in (1, 3):
        count = likelihood.LogisticMixture.parameters_of(2, components)
        mixed = likelihood.LogisticMixture(nn.Identity(), 2, components, bins=5)
        raw = torch.randn(1, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(25, -1)
        p = mixed.log_p(pairs, centre, torch.tensor(-1.0, dtype=torch.float64), 2 * raw)[:, 0].exp().reshape(5, 5)
        assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    one = likelihood.LogisticMixture(nn.Identity(), 2, 1, bins=5)
    raw = torch.tensor([[0.0, 0, 0, 0, 0, 2.0]], dtype=torch.float64).expand(25, -1)  # the last one is the coefficient
    p = one.log_p(pairs, 0 * centre, torch.tensor(-1.0, dtype=torch.float64), raw)[:, 0].exp().reshape(5, 5)
    means = (p / p.sum(1, keepdim=True)) @ grid  # of the second channel given the first
    assert bool((means.diff() > 0.2).all()) and float(means[2]) == pytest.approx(0, abs=1e-9)


def test_a_logistic_mixture_learns_what_the_value_is() -> None:
    """At a level where x tells little, training brings the cross-entropy to the conditional entropy."""
    torch.manual_seed(0)
    grid = torch.linspace(-1, 1, 5)
    chosen = torch.multinomial(SHARES.float(), 1000, replacement=True)
    x0, at = grid[chosen][:, None], Level(torch.tensor(1.0), torch.tensor(0.4))
    x = at.corrupt(x0, torch.randn(1000, 1))
    posterior = torch.softmax(SHARES.log() - (x.double() - grid) ** 2 / (2 * 0.16), 1)
    least = -float(torch.log(posterior.gather(1, chosen[:, None])).mean())
    net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, likelihood.LogisticMixture.parameters_of(1, 5)))
    mixed = likelihood.LogisticMixture(net, 1, components=5, bins=5)
    optimiser = torch.optim.Adam(mixed.parameters(), lr=0.03)
    losses = []
    for _ in range(90):
        optimiser.zero_grad()
        loss = -mixed(x0, x, at, x).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > least + 0.1 and abs(losses[-1] - least) < 0.03, (losses[0], losses[-1], least)


def points(x: Tensor, at: Level, cond: object) -> Tensor:
    """The exact denoiser of the five values, in one dimension."""
    grid = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    return closed_form.mixture(SHARES, grid, 0.0)(x, at, {})


@pytest.mark.parametrize("decoder", [likelihood.discrete_decoder(5), likelihood.logistic_decoder(5)])
def test_the_bound_of_discrete_values_is_their_entropy(decoder: likelihood.Decoder) -> None:
    """In bits a dimension; the dequantised density of the same values has no bound at all."""
    chosen = torch.multinomial(SHARES, 3000, replacement=True, generator=torch.Generator().manual_seed(0))
    x0 = torch.linspace(-1, 1, 5, dtype=torch.float64)[chosen][:, None]
    own = -float(SHARES.log2()[chosen].mean())  # of these examples
    bits = bits_per_dim(points, x0, schedules.logsnr(6.0, -12.0), draws=32, decoder=decoder)
    mean, error = likelihood.mean_and_error(bits + SHARES.log2()[chosen])
    assert error < 0.03 and abs(mean) < 3 * error, (mean, error)
    assert own == pytest.approx(ENTROPY, abs=0.05)


@pytest.mark.parametrize("schedule", [schedules.vp(), schedules.linear()], ids=["vp", "linear"])
def test_important_levels_make_the_bound_precise(schedule: schedules.NoiseSchedule) -> None:
    """The bound of the exact denoiser is the log-density; its standard error is that of 1.7 times as many draws."""
    x0 = mixture.draw(7, torch.arange(6000)).double()
    exact = closed_form.mixture_logp(x0, level(0.0), mixture.WEIGHTS, mixture.MEANS, mixture.SDS) / 2 / math.log(2)
    oracle = mixture.denoiser()
    important = likelihood.important_levels(oracle, mixture.draw(8, torch.arange(2000)).double(), schedule)
    even, chosen = (
        likelihood.mean_and_error(bits_per_dim(oracle, x0, schedule, draws=16, levels=levels) + exact)
        for levels in (None, important)
    )
    assert chosen[1] < 0.82 * even[1] and chosen[1] < 0.022, (even, chosen)
    assert abs(chosen[0]) < 3 * chosen[1] and abs(even[0]) < 3 * even[1], (even, chosen)


def test_levels_are_drawn_from_their_density() -> None:
    proposal = likelihood.LevelProposal(torch.tensor([-2.0, 0.0, 1.0]).double(), torch.tensor([0.25, 0.75]).double())
    logsnr, density, _ = proposal.draw((torch.arange(1000).double() + 0.5) / 1000)
    assert float((logsnr < 0).double().mean()) == pytest.approx(0.25, abs=0.002)
    assert float((1 / density).mean()) == pytest.approx(3.0, abs=0.01)  # the length of the interval
    assert float(logsnr.min()) > -2 and float(logsnr.max()) < 1


def test_the_normal_decoder_is_a_density() -> None:
    at = logsnr_level(torch.tensor(2.0, dtype=torch.float64))
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    p = likelihood.normal_decoder(grid, torch.full_like(grid, 0.5), at, grid).exp()
    assert float(p.sum() * 16 / 4000) == pytest.approx(1, abs=1e-6)
    assert float((p * grid[:, 0]).sum() / p.sum()) == pytest.approx(0.5 / float(at.a), abs=1e-6)
