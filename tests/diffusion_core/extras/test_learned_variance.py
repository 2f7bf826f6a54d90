"""Variance of x0 given x, the probability-flow ODE, and optimised timesteps."""

from itertools import combinations, pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion_core import rng, schedules
from diffusion_core.extras import closed_form
from diffusion_core.extras.learned_variance import LearnedVariance, analytic_variance, hybrid_loss, transition_kl
from diffusion_core.losses import unit
from diffusion_core.sampling import timestep_search, timesteps
from diffusion_core.sampling.loop import sample
from diffusion_core.sampling.ode import log_likelihood, solve
from diffusion_core.sampling.solvers import ddim
from diffusion_core.schedules import sigma_level
from diffusion_core.targets import EPS
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


class Chain:
    """The DDPM chain of these betas in the notation of the papers, t = 0 ... N - 1, for data of unit variance."""

    def __init__(self, betas):
        self.beta = betas
        self.alpha_bar = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self.beta_tilde = (1 - before) / (1 - self.alpha_bar) * betas
        self.of_x0 = before.sqrt() * betas / (1 - self.alpha_bar)  # DDPM, eq. 7
        clipped = torch.cat([self.beta_tilde[1:2], self.beta_tilde[1:]])
        self.log_bounds = clipped.log(), betas.log()

    def variance(self, share, t):
        """Improved DDPM, eq. 15."""
        low, high = self.log_bounds
        return torch.exp(share * high[t] + (1 - share) * low[t])


class Constant(torch.nn.Module):
    """A network that predicts given noise and a given logit of the share."""

    def __init__(self, eps, logit):
        super().__init__()
        self.eps, self.logit = torch.nn.Parameter(eps), torch.nn.Parameter(logit)

    def forward(self, x, c_noise, cond):
        return torch.cat([self.eps.expand_as(x), self.logit.expand_as(x)], 1)


BETAS = schedules.linear_betas(50, 1e-3, 0.2)
CHAIN = Chain(BETAS)
SCHEDULE = schedules.betas(BETAS)


def learned(logit, eps=0.3):
    net = Constant(torch.tensor(eps, dtype=torch.float64), torch.tensor(logit, dtype=torch.float64))
    return net, LearnedVariance(net, EPS)


@pytest.mark.parametrize("logit", [-30.0, -1.0, 2.0, 30.0])
def test_improved_ddpm_interpolates_the_variance_in_logarithms(logit):
    _, denoiser = learned(logit)
    share = torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
    x = torch.zeros(1, 1, dtype=torch.float64)
    for t in (1, 7, 49):
        level, to = timesteps.levels(SCHEDULE, torch.tensor([t, t - 1]))
        means = [sample(denoiser.posterior, x, [level, to], ddim(1.0), iter([n * torch.ones_like(x)])) for n in (0, 1)]
        expected = torch.exp(share * BETAS[t].log() + (1 - share) * CHAIN.beta_tilde[t].log())
        torch.testing.assert_close(((means[1] - means[0]) ** 2)[0, 0], expected)
    last = [timesteps.levels(SCHEDULE, torch.tensor([0]))[0], timesteps.clean()]
    ends = [sample(denoiser.posterior, x, last, ddim(1.0), iter([n * torch.ones_like(x)])) for n in (0, 1)]
    if logit < 30:  # the last step adds no noise
        assert torch.equal(ends[0], ends[1])


def test_hybrid_loss_is_its_formula():
    """L_simple + 1e-3 N L_t, with L_t the KL divergence of two normals, and the decoder's negative log density at t = 0."""
    net, denoiser = learned(-0.7)
    share = torch.sigmoid(net.logit.detach())
    t = torch.tensor([0, 1, 2, 20, 49])
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = SCHEDULE(t.double())
    loss = hybrid_loss(SCHEDULE, 50)(denoiser, x0, level, noise, unit(EPS), {})

    x = level.corrupt(x0, noise)
    root = CHAIN.alpha_bar[t].sqrt()[:, None]
    x0_hat = (x - (1 - CHAIN.alpha_bar[t]).sqrt()[:, None] * net.eps.detach()) / root
    difference = CHAIN.of_x0[t][:, None] * (x0 - x0_hat)  # of the means of the two steps
    model = Normal(torch.zeros(5, 1).double(), CHAIN.variance(share, t)[:, None].sqrt())
    true = Normal(difference, CHAIN.beta_tilde[t].clamp(min=1e-30)[:, None].sqrt())
    bound = torch.where((t > 0)[:, None], kl_divergence(true, model), -model.log_prob(difference)).mean(1)
    simple = (net.eps.detach() - noise).square().mean(1)
    torch.testing.assert_close(loss.detach(), simple + 1e-3 * 50 * bound, rtol=1e-6, atol=1e-9)


def test_the_bound_trains_the_variance_only():
    net, denoiser = learned(-0.7)
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = SCHEDULE(torch.tensor([0, 1, 2, 20, 49]).double())
    hybrid_loss(SCHEDULE, 50)(denoiser, x0, level, noise, lambda level: torch.zeros(5), {}).sum().backward()
    assert float(net.eps.grad) == 0 and float(net.logit.grad) != 0


def test_the_share_learns_the_variance_of_the_true_steps():
    """With a perfect mean for data of unit variance the best share is 1: the steps' variance is beta."""
    net, denoiser = learned(0.0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([net.logit], lr=0.3)
    oracle = closed_form.gaussian(torch.zeros(3).double(), torch.eye(3).double())
    for _ in range(60):
        x0, noise = torch.randn(2, 2000, 3, dtype=torch.float64, generator=generator)
        level, to = timesteps.levels(SCHEDULE, torch.tensor([10, 9]))
        x = level.corrupt(x0, noise)
        guess = denoiser.posterior(x, level)._replace(mean=oracle(x, level, {}))
        optimizer.zero_grad()
        transition_kl(x0, guess, level, to).mean().backward()
        optimizer.step()
    assert float(torch.sigmoid(net.logit)) > 0.95


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
