"""Weights, draws, importance, uncertainty, variance, guides, searched walks, averages: each against its formula."""

import math
from itertools import combinations, pairwise

import pytest
import torch

from diffusion_core import exact, guide, level, objective, rng, search, walk, weight
from diffusion_core.average import Average, mix, post_hoc_shares, power, power_gamma
from diffusion_core.importance import Importance
from diffusion_core.level import Level, sigma_level
from diffusion_core.move import split
from diffusion_core.ode import log_likelihood, solve
from diffusion_core.sample import sample
from diffusion_core.step import ddim
from diffusion_core.target import EPS
from diffusion_core.variance import measured

SIGMA = sigma_level(torch.logspace(-2, 1.5, 40, dtype=torch.float64))


def toy(seed=0, d=3, k=4):
    generator = torch.Generator().manual_seed(seed)
    share = torch.softmax(torch.randn(k, generator=generator, dtype=torch.float64), 0)
    means = torch.randn(k, d, generator=generator, dtype=torch.float64)
    return share, means, torch.rand(k, generator=generator, dtype=torch.float64) * 0.4 + 0.1


# Weights and draws


def test_weights_in_closed_form():
    snr = SIGMA.snr
    close = torch.testing.assert_close
    close(weight.min_snr(5)(SIGMA), torch.minimum(snr, torch.full_like(snr, 5)))
    close(weight.soft_min_snr(1.0)(SIGMA), snr / (1 + snr))
    close(weight.p2(1, 1)(SIGMA), objective.unit(EPS)(SIGMA) / (1 + snr))  # 1 / (k + SNR)^gamma on the noise's error
    close(weight.debiased()(SIGMA), objective.unit(EPS)(SIGMA) / snr.sqrt())


@pytest.mark.parametrize("path", [level.vp(), level.trig(), level.linear(), level.logsnr(8, -6)])
def test_elbo_weight_is_the_slope_of_the_snr(path):
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    h = 1e-5
    slope = (path(t + h).snr - path(t - h).snr) / (2 * h)
    torch.testing.assert_close(weight.elbo(path)(path(t)), -slope / 2, rtol=1e-5, atol=1e-9)


def test_stratified_draws_are_uniform_and_at_least_five_times_steadier():
    """The standard deviation of a batch's mean loss, for a smooth loss of the level."""

    def noise(draw):
        means = torch.stack([torch.sin(3 * draw(0, start, 64)).mean() for start in range(0, 64 * 400, 64)])
        return float(means.std())

    assert noise(objective.iid) / noise(objective.stratified) > 5
    u = torch.cat([objective.stratified(1, start, 16) for start in range(0, 16 * 500, 16)])
    assert abs(float(u.mean()) - 0.5) < 0.002 and 0 < float(u.min()) < float(u.max()) < 1


def test_densities_have_their_distribution():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logs = objective.lognormal(-1.2, 1.2)(u).sigma.log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=1e-3) and float(logs.std()) == pytest.approx(1.2, abs=1e-2)
    t = level.linear().invert(objective.logitnormal(level.linear(), 0.5, 2.0)(u).logsnr)
    assert float(torch.logit(t).mean()) == pytest.approx(0.5, abs=1e-3)
    chain = level.betas(level.linear_betas(10))
    steps = chain.invert(objective.discrete(chain, 10)(u).logsnr)
    assert torch.bincount(steps.round().long()).tolist() == [10_000] * 10


def test_importance_sampling_is_unbiased_and_steadier():
    """A loss that is large at small u: the mean keeps its value, the spread falls."""

    def losses(u):
        return torch.exp(-6 * u) * 5

    importance = Importance(bins=16)
    for round_ in range(200):
        u, _ = importance(rng.uniform((), 1, torch.arange(64) + 64 * round_))
        importance.update(importance.squares(u, losses(u)))
    u = rng.uniform((), 2, torch.arange(200_000))
    warped, scale = importance(u)
    ours, plain = losses(warped) * scale, losses(u)
    expected = 5 * (1 - math.exp(-6)) / 6
    assert float(ours.mean()) == pytest.approx(expected, abs=5 * float(ours.std()) / len(u) ** 0.5)
    assert float(ours.std()) < 0.4 * float(plain.std())
    assert float(scale.mean()) == pytest.approx(1, abs=0.01)
    assert (warped.sort().indices == u.sort().indices).all()  # monotone


def test_importance_is_uniform_until_every_bin_was_seen():
    importance = Importance(bins=4)
    u = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    importance.update(importance.squares(u, torch.ones(3)))
    torch.testing.assert_close(importance(u), (u, torch.ones(3, dtype=torch.float64)))


def test_uncertainty_learns_the_loss():
    loss = weight.Uncertainty(width=64)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    expected = SIGMA.sigma / (1 + SIGMA.sigma)  # what an imaginary denoiser's error is at each level
    x0 = torch.zeros(40, 1, dtype=torch.float64)
    for _ in range(400):
        value = loss(lambda x, here, cond: expected.sqrt()[:, None], x0, SIGMA, x0, lambda here: torch.ones(40), {})
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
    torch.testing.assert_close(loss.log_variance(SIGMA).double(), expected.log(), rtol=0, atol=0.1)


# Variance


def test_with_the_true_variance_ancestral_sampling_is_exact_for_gaussian_data():
    """Three steps, isotropic normal data of standard deviation 0.7: the variance of every visit is the marginal's."""
    sd = 0.7
    steps = walk.karras(4, 0.1, 5.0)
    data = sd * rng.normal((1,), 0, torch.arange(50_000)).double()
    oracle = exact.gaussian(torch.zeros(1).double(), torch.eye(1).double() * sd**2)
    noise = rng.stream((1,), 1, torch.arange(200_000), torch.float64)
    start = steps[0].corrupt(sd * next(noise), next(noise))

    def final(denoiser):
        return float(sample(denoiser, start, steps, ddim(1.0), noise).std())

    assert final(measured(oracle, steps, data)) == pytest.approx(sd, rel=0.01)
    assert final(oracle) < 0.9 * sd


def test_measured_variance_is_that_of_the_posterior():
    share, means, _ = toy()
    ids = torch.arange(40_000)
    data = means[torch.multinomial(share, len(ids), True, generator=torch.Generator().manual_seed(0))]
    data = data + 0.3 * rng.normal((3,), 1, ids)
    steps = walk.karras(5, 0.2, 3.0)
    oracle = exact.mixture(share, means, 0.3)
    guess = measured(oracle, steps, data)
    for here in steps[:-1]:
        x = here.corrupt(data, rng.normal((3,), 2, ids).double())
        error = (oracle(x, here, {}) - data).square().mean()
        torch.testing.assert_close(guess(x[:1], here, {}).var[0, 0], error, rtol=0.05, atol=0)


# Guides


def test_negative_and_partial_guidance_withhold_what_they_say():
    def denoise(x, here, cond):
        return torch.full_like(x, cond["vec:a"] if "vec:a" in cond else 0.0) + (10 if "vec:b" in cond else 0)

    x = torch.zeros(1, 1)
    here = sigma_level(torch.tensor(1.0))
    cond = {"vec:a": 2.0, "vec:b": 1.0}
    assert float(guide.cfg(denoise, 3.0)(x, here, cond)) == 36
    assert float(guide.extrapolate(denoise, guide.unconditional(denoise, "vec:a"), 3.0)(x, here, cond)) == 16
    assert float(guide.negative(denoise, {"vec:a": 1.0}, 3.0)(x, here, cond)) == 14


def test_strengths_depend_on_the_level():
    steps = walk.karras(5)[:-1]
    limited = guide.interval(3.0, 0.1, 5.0)
    assert [limited(here) for here in steps] == [3.0 if 0.1 < float(h.sigma) <= 5 else 1.0 for h in steps]
    rising = guide.ramp(1.0, 4.0)
    assert rising(Level(torch.tensor(0.0), torch.tensor(1.0))) == pytest.approx(1)
    assert rising(walk.clean()) == pytest.approx(4)
    swing = guide.oscillate(steps, 8.0, 1.0, 2)
    assert [swing(here) for here in steps] == [8, 8, 1, 8, 1]


def test_rescale_and_thresholds():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    here = sigma_level(torch.tensor(1.0))

    def plain(x, here, cond):
        return x

    def strong(x, here, cond):
        return 4 * x

    full = guide.rescale(strong, plain, 1.0)(x, here, {})
    torch.testing.assert_close(full.std(1), x.std(1))
    torch.testing.assert_close(guide.rescale(strong, plain, 0.0)(x, here, {}), 4 * x)
    assert float(guide.threshold(strong)(x, here, {}).abs().max()) == 1
    dynamic = guide.dynamic_threshold(strong, 0.9)(x, here, {})
    assert float(dynamic.abs().max()) == pytest.approx(1)
    assert ((dynamic.abs() > 0.999).float().mean(1) - 0.1).abs().max() < 0.03
    small = guide.dynamic_threshold(plain, 0.9)(x / 100, here, {})
    torch.testing.assert_close(small, x / 100)


def test_classifier_guidance_with_the_exact_classifier_is_the_conditional_denoiser():
    share, means, sds = toy()
    here = level.trig()(torch.tensor(0.45, dtype=torch.float64))

    def log_p(x, at):  # of component 2, given the noisy x
        return exact.mixture_shares(x, at, share, means, sds)[:, 2].log()

    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    pushed = guide.push(exact.mixture(share, means, sds), log_p)(x, here, {})
    alone = exact.mixture(torch.ones(1).double(), means[2:3], sds[2:3])(x, here, {})
    torch.testing.assert_close(pushed, alone)


def test_self_conditioning_shows_the_first_estimate():
    seen = []

    def denoise(x, here, cond):
        seen.append(cond.get("vec:self"))
        return x + (1 if "vec:self" in cond else 5)

    out = guide.self_condition(denoise, "vec:self")(torch.zeros(1, 2, 1), SIGMA, {})
    assert seen[0] is None and seen[1].tolist() == [[5, 5]] and out.flatten().tolist() == [1, 1]


def test_self_conditioned_training_shows_half_of_the_rows_their_estimate():
    x0, noise = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(0))
    here = sigma_level(torch.ones(4000))
    shown = []

    def denoise(x, at, cond):
        shown.append(cond)
        return x / 2

    value = objective.self_conditioned("vec:self")(denoise, x0, here, noise, lambda at: torch.ones(4000), {})
    assert shown[0] == {} and torch.equal(shown[1]["vec:self"], (x0 + noise) / 2)
    assert abs(float(shown[1]["keep:vec:self"].float().mean()) - 0.5) < 0.04
    torch.testing.assert_close(value, ((x0 + noise) / 2 - x0).square().mean(1))


# The flow as an ODE


def test_likelihood_of_a_mixture_is_exact():
    share, means, sds = toy()
    x = means + 0.2 * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    low, high = (sigma_level(torch.tensor(s, dtype=torch.float64)) for s in (1e-3, 1e4))
    ours = log_likelihood(exact.mixture(share, means, sds), x, low, high, 1.0, rtol=1e-7, atol=1e-7)
    exactly = exact.mixture_logp(x, low, share, means, sds)
    torch.testing.assert_close(ours, exactly, rtol=0, atol=1e-3)


def test_adaptive_flow_is_the_gaussian_solution_and_goes_both_ways():
    cov = torch.diag(torch.tensor([2.0, 0.1], dtype=torch.float64))
    oracle = exact.gaussian(torch.zeros(2).double(), cov)
    low, high = (level.linear()(torch.tensor(t, dtype=torch.float64)) for t in (0.01, 0.999))
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end, evaluations = solve(oracle, x, high, low, rtol=1e-7, atol=1e-7)
    scale = torch.sqrt((low.a**2 * cov.diag() + low.s**2) / (high.a**2 * cov.diag() + high.s**2))
    torch.testing.assert_close(end, x * scale, rtol=1e-4, atol=1e-5)
    back, _ = solve(oracle, end, low, high, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    assert evaluations < 500


# Searched walks


def test_shortest_way_is_the_cheapest_of_all():
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).triu(1)
    cost = torch.where(cost > 0, cost, torch.inf)

    def price(way):
        return sum(float(cost[i, j]) for i, j in pairwise(way))

    best = min(((0, *inner, 7) for inner in combinations(range(1, 7), 3)), key=price)
    assert search.shortest(cost, 4) == list(best)
    with pytest.raises(ValueError, match="no way"):
        search.shortest(cost, 8)


def test_the_bound_prefers_the_searched_walk():
    """On a mixture, the searched walk has a lower bound cost than even log-SNR with as many steps, and all steps the least."""
    share, means, _ = toy()
    grid = walk.geometric(60, 0.01, 30.0)
    errors = [float(exact_error(share, means, here)) for here in grid]
    cost = search.bound_cost(grid, errors)
    way = search.shortest(cost, 8)
    even = torch.linspace(0, 59, 9).round().long().tolist()

    def price(indices):
        return sum(float(cost[i, j]) for i, j in pairwise(indices))

    assert price(range(60)) < price(way) < 0.9 * price(even)


def exact_error(share, means, here):
    ids = torch.arange(4000)
    data = means[ids % 4] + 0.2 * rng.normal((3,), 0, ids)
    guess = exact.mixture(torch.full((4,), 0.25).double(), means, 0.2)
    return (guess(here.corrupt(data, rng.normal((3,), 1, ids).double()), here, {}) - data).square().mean()


def test_learned_levels_beat_the_ones_they_started_from():
    share, means, sds = toy()
    oracle = exact.mixture(share, means, sds)
    x = 20 * rng.normal((3,), 0, torch.arange(256)).double()
    with torch.no_grad():
        fine = sample(oracle, x, walk.karras(200, 0.02, 20.0), ddim(), iter(()))

    def loss(steps):
        return (sample(oracle, x, steps, ddim(), iter(())) - fine).square().mean()

    start = walk.karras(5, 0.02, 20.0)
    found = search.learned(start, loss, iterations=40, rate=0.05)
    assert len(found) == len(start) and all(a.noisier(b) for a, b in pairwise(found))
    assert float(found[0].sigma) == pytest.approx(20) and float(found[-2].sigma) == pytest.approx(0.02)
    assert float(loss(found)) < 0.8 * float(loss(start))


# Averages


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


def test_post_hoc_average_is_the_average_one_would_have_run():
    """Weights on a smooth random way; two stored averages at 8 times reproduce a third one to a small part of its motion."""
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
    ours = mix(tensors, post_hoc_shares(snapshots, total, 0.15))["w"]
    nearest = min(float((part["w"] - wanted.weights["w"]).norm()) for part in tensors)
    assert float((ours - wanted.weights["w"]).norm()) < 0.1 * nearest
    assert float(post_hoc_shares(snapshots, total, 0.15).sum()) == pytest.approx(1, abs=0.02)


def test_the_split_of_noise_keeps_its_square():
    high, low = walk.karras(3)[:2]
    for eta in (0.0, 0.3, 1.0):
        stays, fresh = split(high, low, eta)
        torch.testing.assert_close(stays**2 + fresh**2, low.s**2)


def test_cfg_composes_with_the_rest():
    share, means, sds = toy()
    oracle = exact.mixture(share, means, sds)
    composed = guide.threshold(guide.rescale(guide.cfg(oracle, guide.interval(2, 0.1, 10)), oracle), 3.0)
    here = sigma_level(torch.tensor(0.5, dtype=torch.float64))
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(composed(x, here, {}), oracle(x, here, {}).clamp(-3, 3))  # no condition, no guidance
