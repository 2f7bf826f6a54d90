"""Inverse problems against the exact posterior of Gaussian data."""

import pytest
import torch

from benchmarks import inverse as benchmark
from diffusion_core import inverse, rng, schedules
from diffusion_core.extras import closed_form
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import sample
from diffusion_core.sampling.solvers import dpmpp_2m
from diffusion_core.schedules import sigma_level

D, NOISE = 6, 0.3


def problem():
    """Normal data and three linear measurements: prior mean and covariance, operator, y, posterior mean and covariance."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64) / D**0.5
    cov = root @ root.T + 0.05 * torch.eye(D, dtype=torch.float64)
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    a = torch.randn(3, D, generator=generator, dtype=torch.float64) / D**0.5
    y = torch.randn(3, generator=generator, dtype=torch.float64)
    gain = cov @ a.T @ torch.linalg.inv(a @ cov @ a.T + NOISE**2 * torch.eye(3, dtype=torch.float64))
    return mean, cov, a, y, mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def test_moment_matching_is_the_exact_conditional_denoiser():
    mean, cov, a, y, mean_y, cov_y = problem()
    guided = inverse.moment_matching(closed_form.gaussian(mean, cov), a, y.expand(5, 3), NOISE)
    right = closed_form.gaussian(mean_y, cov_y)
    for here in timesteps.levels(schedules.trig(), torch.tensor([0.1, 0.4, 0.8])):
        x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(guided(x, here, {}), right(x, here, {}), rtol=0, atol=1e-11)


def test_pigdm_is_exact_only_for_isotropic_data():
    _, cov, a, y, _, _ = problem()
    here = schedules.trig()(torch.tensor(0.4, dtype=torch.float64))
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for prior, near in ((0.7**2 * torch.eye(D, dtype=torch.float64), True), (cov, False)):
        zero = torch.zeros(D, dtype=torch.float64)
        gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + NOISE**2 * torch.eye(3, dtype=torch.float64))
        right = closed_form.gaussian(gain @ y, prior - gain @ a @ prior)(x, here, {})
        for method in (
            inverse.pigdm(closed_form.gaussian(zero, prior), a, y.expand(5, 3), NOISE, 0.7),
            inverse.gaussian_posterior(
                closed_form.gaussian(zero, prior), a, y.expand(5, 3), NOISE, inverse.normal_prior(0.7)
            ),
        ):
            error = float((method(x, here, {}) - right).abs().max())
            assert (error < 1e-11) if near else (error > 1e-2), error


def test_sampling_with_moment_matching_has_the_posterior_mean_and_covariance():
    mean, cov, a, y, mean_y, cov_y = problem()
    n = 4000
    guided = inverse.moment_matching(closed_form.gaussian(mean, cov), a, y.expand(n, 3), NOISE)
    x = 80 * rng.normal((D,), 0, torch.arange(n)).double()
    with torch.no_grad():
        got = sample(guided, x, timesteps.karras(20), dpmpp_2m(), iter(()))
    assert float((got.mean(0) - mean_y).norm()) < 0.06
    assert float((torch.cov(got.T) - cov_y).norm() / cov_y.norm()) < 0.1


def test_dps_reduces_the_residual():
    mean, cov, a, y, _, _ = problem()
    here = sigma_level(torch.tensor(0.5, dtype=torch.float64))
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = closed_form.gaussian(mean, cov)

    def seen(v):
        return v @ a.T

    guided = inverse.dps(plain, seen, y.expand(5, 3), 0.1)
    before, after = ((seen(d(x, here, {})) - y).norm(dim=1) for d in (plain, guided))
    assert (after < before).all()


def test_projection_meets_the_measurement_and_keeps_the_null_space():
    _, _, a, y, _, _ = problem()
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    clean = inverse.project(a, y.expand(5, 3))(x, timesteps.clean(), iter([torch.zeros_like(x)]))
    torch.testing.assert_close(clean @ a.T, y.expand(5, 3))
    null = torch.linalg.svd(a).Vh[3:]
    torch.testing.assert_close(clean @ null.T, x @ null.T)


def test_operators_are_linear_and_have_their_matrix():
    shape = (2, 8, 8)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3
    for operator in (inverse.inpaint(mask), inverse.downsample(4), inverse.blur(1.5, 3)):
        a = inverse.matrix(operator, shape)
        x = torch.randn(3, *shape, dtype=torch.float64)
        torch.testing.assert_close(operator(x), x.flatten(1) @ a.T)
    rows = inverse.matrix(inverse.blur(1.5, 3), shape).sum(1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


# Largest allowed distance between the means of samples and posterior, in posterior standard deviations, for inpainting. The
# prior's distance is 3.
LARGEST = {
    "replacement / POCS / ILVR": 1.1,
    "RePaint, 10 times": 0.25,
    "CCDF": 1.2,
    "DPS": 1.6,
    "MCG": 0.7,
    "PiGDM": 0.55,
    "isotropic posterior": 1.1,
    "moment matching": 0.2,
}


@pytest.mark.parametrize("name", LARGEST)
def test_samples_are_close_to_the_posterior(name, monkeypatch):
    monkeypatch.setattr(benchmark, "COUNT", 400)
    mean, cov = benchmark.prior()
    a = benchmark.problems()["inpainting"]
    truth = mean + rng.normal((benchmark.D,), 7, torch.arange(1)).double()[0] @ torch.linalg.cholesky(cov).T
    y = truth @ a.T + benchmark.NOISE * rng.normal((len(a),), 8, torch.arange(1)).double()[0]
    gain = cov @ a.T @ torch.linalg.inv(a @ cov @ a.T + benchmark.NOISE**2 * torch.eye(len(a), dtype=torch.float64))
    posterior_mean, posterior_cov = mean + gain @ (y - a @ mean), cov - gain @ a @ cov
    samples = benchmark.METHODS[name](closed_form.gaussian(mean, cov), a, y.expand(400, -1))
    off = float((samples.mean(0) - posterior_mean).norm() / posterior_cov.trace().sqrt())
    assert off < LARGEST[name]
    if name not in (
        "DPS",
        "moment matching",
        "PiGDM",
        "isotropic posterior",
    ):
        assert float((samples @ a.T - y).abs().max()) < 0.05
    assert float((samples @ a.T - y).norm(dim=1).mean()) < 1.0  # the prior's is 2.5
