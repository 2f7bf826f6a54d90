"""Variance of x0 given x, the probability-flow ODE, and optimised timesteps."""

from itertools import combinations, pairwise

import pytest
import torch

from diffusion_core import rng, schedules
from diffusion_core.extras import closed_form
from diffusion_core.extras.learned_variance import analytic_variance
from diffusion_core.sampling import timestep_search, timesteps
from diffusion_core.sampling.loop import sample
from diffusion_core.sampling.ode import log_likelihood, solve
from diffusion_core.sampling.solvers import ddim
from diffusion_core.schedules import sigma_level
from tests.support.toy_mixture import toy


def test_ancestral_sampling_with_the_true_variance_is_exact_for_gaussian_data():
    """Three steps on isotropic normal data of standard deviation 0.7 end with this standard deviation."""
    sd = 0.7
    steps = timesteps.karras(4, 0.1, 5.0)
    data = sd * rng.normal((1,), 0, torch.arange(50_000)).double()
    oracle = closed_form.gaussian(torch.zeros(1).double(), torch.eye(1).double() * sd**2)
    noise = rng.stream((1,), 1, torch.arange(200_000), torch.float64)
    start = steps[0].corrupt(sd * next(noise), next(noise))

    def final(denoiser):
        return float(sample(denoiser, start, steps, ddim(1.0), noise).std())

    assert final(analytic_variance(oracle, steps, data)) == pytest.approx(sd, rel=0.01)
    assert final(oracle) < 0.9 * sd


def test_measured_variance_is_that_of_the_posterior():
    share, means, _ = toy()
    ids = torch.arange(40_000)
    data = means[torch.multinomial(share, len(ids), True, generator=torch.Generator().manual_seed(0))]
    data = data + 0.3 * rng.normal((3,), 1, ids)
    steps = timesteps.karras(5, 0.2, 3.0)
    oracle = closed_form.mixture(share, means, 0.3)
    guess = analytic_variance(oracle, steps, data)
    for here in steps[:-1]:
        x = here.corrupt(data, rng.normal((3,), 2, ids).double())
        error = (oracle(x, here, {}) - data).square().mean()
        torch.testing.assert_close(guess(x[:1], here, {}).var[0, 0], error, rtol=0.05, atol=0)


def test_likelihood_of_a_mixture_is_exact():
    share, means, sds = toy()
    x = means + 0.2 * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    low, high = (sigma_level(torch.tensor(s, dtype=torch.float64)) for s in (1e-3, 1e4))
    ours = log_likelihood(closed_form.mixture(share, means, sds), x, low, high, 1.0, rtol=1e-7, atol=1e-7)
    exactly = closed_form.mixture_logp(x, low, share, means, sds)
    torch.testing.assert_close(ours, exactly, rtol=0, atol=1e-3)


def test_adaptive_flow_is_the_gaussian_solution_and_goes_both_ways():
    cov = torch.diag(torch.tensor([2.0, 0.1], dtype=torch.float64))
    oracle = closed_form.gaussian(torch.zeros(2).double(), cov)
    low, high = (schedules.linear()(torch.tensor(t, dtype=torch.float64)) for t in (0.01, 0.999))
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end, evaluations = solve(oracle, x, high, low, rtol=1e-7, atol=1e-7)
    scale = torch.sqrt((low.a**2 * cov.diag() + low.s**2) / (high.a**2 * cov.diag() + high.s**2))
    torch.testing.assert_close(end, x * scale, rtol=1e-4, atol=1e-5)
    back, _ = solve(oracle, end, low, high, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    assert evaluations < 500


def test_shortest_path_is_the_cheapest_of_all():
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).triu(1)
    cost = torch.where(cost > 0, cost, torch.inf)

    def price(path):
        return sum(float(cost[i, j]) for i, j in pairwise(path))

    best = min(((0, *inner, 7) for inner in combinations(range(1, 7), 3)), key=price)
    assert timestep_search.shortest_path(cost, 4) == list(best)
    with pytest.raises(ValueError, match="no path"):
        timestep_search.shortest_path(cost, 8)


def test_optimised_timesteps_have_a_lower_cost_than_even_ones():
    """On a mixture 8 optimised steps cost less than 8 steps even in log-SNR, and more than all 59 steps."""
    share, means, _ = toy()
    grid = timesteps.geometric(60, 0.01, 30.0)
    errors = [float(exact_error(share, means, here)) for here in grid]
    cost = timestep_search.elbo_cost(grid, errors)
    path = timestep_search.shortest_path(cost, 8)
    even = torch.linspace(0, 59, 9).round().long().tolist()

    def price(indices):
        return sum(float(cost[i, j]) for i, j in pairwise(indices))

    assert price(range(60)) < price(path) < 0.9 * price(even)


def exact_error(share, means, here):
    ids = torch.arange(4000)
    data = means[ids % 4] + 0.2 * rng.normal((3,), 0, ids)
    guess = closed_form.mixture(torch.full((4,), 0.25).double(), means, 0.2)
    return (guess(here.corrupt(data, rng.normal((3,), 1, ids).double()), here, {}) - data).square().mean()


def test_learned_timesteps_have_a_lower_loss_than_their_start():
    share, means, sds = toy()
    oracle = closed_form.mixture(share, means, sds)
    x = 20 * rng.normal((3,), 0, torch.arange(256)).double()
    with torch.no_grad():
        fine = sample(oracle, x, timesteps.karras(200, 0.02, 20.0), ddim(), iter(()))

    def loss(steps):
        return (sample(oracle, x, steps, ddim(), iter(())) - fine).square().mean()

    start = timesteps.karras(5, 0.02, 20.0)
    found = timestep_search.learn_timesteps(start, loss, iterations=40, rate=0.05)
    assert len(found) == len(start) and all(a.noisier(b) for a, b in pairwise(found))
    assert float(found[0].sigma) == pytest.approx(20) and float(found[-2].sigma) == pytest.approx(0.02)
    assert float(loss(found)) < 0.8 * float(loss(start))
