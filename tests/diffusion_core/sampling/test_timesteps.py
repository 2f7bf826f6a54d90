"""Timesteps, correctors and classifier guidance against the claims of their papers."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks import mixture
from diffusion_core import guidance, losses, rng
from diffusion_core.extras import closed_form
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.langevin import langevin, predictor_corrector, signal_to_noise
from diffusion_core.sampling.loop import generate, sample
from diffusion_core.sampling.solvers import ddim, heun
from diffusion_core.schedules import sigma_level

ONE = torch.ones(1, dtype=torch.float64)


def normal_data(sd):
    return closed_form.gaussian(torch.zeros(1).double(), ONE.diag() * sd**2)


@pytest.mark.parametrize("s_churn, s_tmin, s_tmax", [(0.0, 0.0, math.inf), (6.0, 0.05, 50.0), (40.0, 0.0, math.inf)])
def test_heun_with_churn_is_algorithm_2_of_edm(s_churn, s_tmin, s_tmax):
    """Karras et al. 2022, algorithm 2, written out as in the paper."""
    denoise, n = mixture.denoiser(), 12
    noises = [rng.normal((2,), i, torch.arange(40)).double() for i in range(n + 1)]
    sigmas = [float(here.sigma) for here in timesteps.karras(n)]
    x = start = 80 * noises[-1]
    raised = iter(noises)
    gamma = min(s_churn / n, math.sqrt(2) - 1)
    for t, after in pairwise(sigmas):
        hat = t * (1 + gamma) if s_tmin <= t <= s_tmax else t
        if hat > t:
            x = x + math.sqrt(hat**2 - t**2) * next(raised)
        slope = (x - denoise(x, sigma_level(torch.tensor(hat, dtype=torch.float64)), {})) / hat
        moved = x + (after - hat) * slope
        if after > 0:
            second = (moved - denoise(moved, sigma_level(torch.tensor(after, dtype=torch.float64)), {})) / after
            moved = x + (after - hat) * (slope + second) / 2
        x = moved
    ours = sample(denoise, start, timesteps.churn(timesteps.karras(n), s_churn, s_tmin, s_tmax), heun(), iter(noises))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


def test_restart_repeats_the_interval_and_shrinks_errors():
    """An error of the initial mean shrinks by the same factor with every repetition of the interval."""
    steps = timesteps.karras(20, 0.02, 20.0)
    again = timesteps.restart(steps, 0.1, 2.0, 3)
    inside = [here.sigma for here in steps if 0.1 <= here.sigma <= 2]
    assert [here.sigma for here in again].count(inside[0]) == 4 and len(again) == len(steps) + 3 * len(inside)
    assert sum(to.noisier(here) for here, to in pairwise(again)) == 3

    def bias(walked):
        start = 20 * rng.normal((1,), 0, torch.arange(20_000)).double() + 8
        noise = rng.stream((1,), 1, torch.arange(20_000), torch.float64)
        return float(sample(normal_data(1.0), start, walked, heun(), noise).mean())

    once, again_and_again = bias(steps), bias(again)
    assert once == pytest.approx(8 / math.sqrt(401), rel=0.05)  # the flow contracts by sd / sqrt(sd^2 + sigma^2)
    # Each repetition contracts by the ratio of the marginal standard deviations; adding noise does not change the mean.
    low, high = float(inside[-1]), float(inside[0])
    assert again_and_again == pytest.approx(once * ((1 + low**2) / (1 + high**2)) ** 1.5, abs=0.03)


def test_a_truncated_start_from_the_exact_marginal_is_exact():
    """TDPM: from the exact marginal at sigma 0.67 the samples have the data's covariance."""
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    oracle = closed_form.gaussian(torch.zeros(2).double(), cov)
    here = sigma_level(torch.tensor(0.67, dtype=torch.float64))
    steps = timesteps.truncate(timesteps.karras(64), here)
    assert len(steps) - 1 < 32
    ids = torch.arange(100_000)
    start = here.corrupt(
        rng.normal((2,), 0, ids).double() @ torch.linalg.cholesky(cov).T, rng.normal((2,), 1, ids).double()
    )
    end = sample(oracle, start, steps, heun(), iter(()))
    torch.testing.assert_close(torch.cov(end.T), cov, rtol=0, atol=0.015)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_langevin_steps_have_their_stationary_variance(rate):
    """On normal data they are an autoregression, whose variance is v / (1 - c / 2) with c = r s^2 / (2 v)."""
    sd, here = 0.5, sigma_level(torch.tensor(1.0, dtype=torch.float64))
    v = sd**2 + 1
    x = 3 + 0 * rng.normal((1,), 0, torch.arange(20_000)).double()
    noise = rng.stream((1,), 1, torch.arange(20_000), torch.float64)
    x = sample(normal_data(sd), x, [here] * round(20 / rate), langevin(rate), noise)
    assert float(x.mean()) == pytest.approx(0, abs=0.05)
    assert float(x.var()) == pytest.approx(v / (1 - rate / (4 * v)), rel=0.04)


def test_a_corrector_restores_the_variance():
    """Few ancestral steps leave too little variance; Langevin steps restore it."""
    sd = 0.7
    steps = timesteps.karras(4, 0.5, 5.0)[:-1]
    noise = rng.stream((1,), 1, torch.arange(20_000), torch.float64)
    start = steps[0].corrupt(sd * next(noise), next(noise))
    both = predictor_corrector(ddim(1.0), langevin(signal_to_noise()))
    wanted = math.sqrt(sd**2 + 0.25)
    plain, corrected = (
        float(sample(normal_data(sd), start, walked, step, noise).std()) - wanted
        for walked, step in ((steps, ddim(1.0)), (timesteps.repeat_levels(steps, 60), both))
    )
    assert plain < -0.1 and abs(corrected) < 0.4 * abs(plain), (plain, corrected)


def test_a_noise_aware_classifier_guides_to_its_class():
    """A small classifier of noisy points guides samples to one component of a mixture."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 5))

    def logits(x, here):
        c_in = 1 / torch.sqrt(here.sigma**2 + 0.25)
        told = here.logsnr.to(x).expand(len(x))[:, None] / 8
        return net(torch.cat([(x * c_in.to(x).reshape(-1, 1)), told], 1).float())

    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for i in range(300):
        ids = torch.arange(256) + 256 * i
        x0 = mixture.draw(1, ids)
        here = losses.geometric(0.01, 20.0)(losses.stratified(2, 256 * i, 256))
        with torch.no_grad():  # without noise every point's component is certain
            clean = sigma_level(torch.tensor(1e-3, dtype=torch.float64))
            label = closed_form.mixture_shares(x0, clean, mixture.WEIGHTS, mixture.MEANS, mixture.SDS).argmax(1)
        value = nn.functional.cross_entropy(logits(here.corrupt(x0, rng.normal((2,), 3, ids)), here), label)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    wanted = 3
    pushed = guidance.classifier_guidance(
        mixture.denoiser(), lambda x, here: torch.log_softmax(logits(x, here), 1)[:, wanted].to(x)
    )
    samples = generate(pushed, timesteps.karras(20, 0.01, 20.0), ddim(), (2,), 0, torch.arange(400))
    near = torch.cdist(samples, mixture.MEANS).argmin(1) == wanted
    assert float(near.float().mean()) > 0.8  # without guidance 15 %
    assert float((samples[near].mean(0) - mixture.MEANS[wanted]).norm()) < 0.05
