"""Inverse problems against the exact posterior of Gaussian data."""

import pytest
import torch

from benchmarks import inverse as benchmark
from diffusion_core import inverse, rng, schedules
from diffusion_core.extras import closed_form
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import sample
from diffusion_core.sampling.solvers import ddim, dpmpp_2m, unipc
from diffusion_core.schedules import Level

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
    guided = inverse.moment_matching(closed_form.gaussian(mean, cov), a, y, NOISE)
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


def test_dps_moves_x_by_the_gradient_of_the_residual_at_any_scale_of_the_levels():
    """On Gaussian data the gradient is -J A^T r / |r| with the Jacobian J of the denoiser."""
    mean, cov, a, y, _, _ = problem()
    denoiser = closed_form.gaussian(mean, cov)
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    level, to = timesteps.levels(schedules.trig(), torch.tensor([0.6, 0.5]))
    jacobian = level.a * cov @ torch.linalg.inv(level.a**2 * cov + level.s**2 * torch.eye(D, dtype=torch.float64))
    residual = y - denoiser(x, level, {}) @ a.T
    moved = 0.3 * (residual / residual.norm(dim=1, keepdim=True)) @ a @ jacobian
    results = {}
    for scale in (1.0, 4.0):
        start, end = (Level(scale * here.a, scale * here.s) for here in (level, to))
        step = inverse.dps(ddim(), lambda v: v @ a.T, y, 0.3)
        results[scale] = sample(denoiser, scale * x, [start, end], step, iter(())) / scale
    torch.testing.assert_close(results[1.0], sample(denoiser, x, [level, to], ddim(), iter(())) + moved)
    torch.testing.assert_close(results[4.0], results[1.0])


def test_reconstruction_guidance_is_exact_where_its_assumption_holds():
    """For an improper flat prior, x0 given x is N(x / a, sigma^2 I); a measurement without noise then has this posterior."""
    level = schedules.trig()(torch.tensor(0.4, dtype=torch.float64))
    x, y = torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    guided = inverse.reconstruction_guidance(lambda x, level, cond: x / level.a, lambda v: v[:, :3], y[:, :3])
    expected = torch.cat([y[:, :3], x[:, 3:] / level.a], 1)
    torch.testing.assert_close(guided(x, level, {}), expected)


def test_unipc_does_not_correct_what_a_constraint_has_set():
    mean, cov, _, _, _, _ = problem()
    mask = torch.tensor([True, False, True, False, False, False])
    a, y = inverse.matrix(inverse.inpaint(mask), (D,)), torch.tensor([3.0, -3.0], dtype=torch.float64)
    visited, set_by_constraint = [], []
    project = inverse.project(a, y)

    def constrain(x, level, noise):
        set_by_constraint.append(project(x, level, noise))
        return set_by_constraint[-1]

    def step(history, to, denoise, noise):
        out = unipc()(history, to, denoise, noise)
        visited.append(history[-1].x)
        return out

    x = 80 * rng.normal((D,), 0, torch.arange(50)).double()
    noise = rng.stream((D,), 1, torch.arange(50), torch.float64)
    sample(closed_form.gaussian(mean, cov), x, timesteps.karras(10), step, noise, constrain=constrain)
    for constrained, used in zip(set_by_constraint[:-1], visited[1:], strict=True):
        assert torch.equal(used[:, mask], constrained[:, mask])
        assert not torch.equal(used[:, ~mask], constrained[:, ~mask])  # the rest is still corrected


@pytest.mark.parametrize("iterations, error", [(0, 1.0), (1, 0.6), (2, 0.25), (3, 1e-9)])
def test_conjugate_gradients_approach_the_exact_conditional_denoiser(iterations, error):
    """Three measurements need three iterations; fewer reduce the error of the unconditional denoiser."""
    mean, cov, a, y, mean_y, cov_y = problem()
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    level = schedules.trig()(torch.tensor(0.4, dtype=torch.float64))
    exact = closed_form.gaussian(mean_y, cov_y)(x, level, {})
    plain = closed_form.gaussian(mean, cov)
    guided = inverse.moment_matching(plain, a, y, NOISE, iterations)(x, level, {})
    assert float((guided - exact).norm()) <= error * float((plain(x, level, {}) - exact).norm())


def test_projection_meets_the_measurement_and_keeps_the_null_space():
    _, _, a, y, _, _ = problem()
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    clean = inverse.project(a, y.expand(5, 3))(x, timesteps.clean(), iter([torch.zeros_like(x)]))
    torch.testing.assert_close(clean @ a.T, y.expand(5, 3))
    null = torch.linalg.svd(a).Vh[3:]
    torch.testing.assert_close(clean @ null.T, x @ null.T)


def test_projection_at_a_noisy_level_has_the_noise_of_the_level():
    """A x is normal with mean a y and covariance s^2 A A^T, for entries, averages and general operators."""
    _, _, general, _, _, _ = problem()
    eye = torch.eye(D, dtype=torch.float64)
    n, level = 40_000, schedules.trig()(torch.tensor(0.4, dtype=torch.float64))
    x = torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a in (eye[[0, 4]], eye.reshape(3, 2, D).mean(1), general):
        y = torch.linspace(1, 2, len(a), dtype=torch.float64)
        noise = rng.stream((D,), 1, torch.arange(n), torch.float64)
        measured = inverse.project(a, y)(x, level, noise) @ a.T
        torch.testing.assert_close(measured.mean(0), level.a * y, rtol=0, atol=0.03)
        torch.testing.assert_close(torch.cov(measured.T), level.s**2 * a @ a.T, rtol=0, atol=0.02)


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
    "DPS, 20 steps": 0.7,
    "DPS, 100 steps": 0.4,
    "MCG, 100 steps": 0.5,
    "reconstruction guidance": 1.0,
    "PiGDM": 0.55,
    "isotropic posterior": 1.1,
    "moment matching": 0.2,
}


@pytest.mark.parametrize("name", LARGEST)
def test_samples_are_close_to_the_posterior(name, monkeypatch):
    monkeypatch.setattr(benchmark, "COUNT", 400)
    mean, cov = benchmark.prior()
    a = benchmark.problems()["inpainting"]
    y, posterior_mean, posterior_cov = benchmark.measurement(a)
    samples = benchmark.METHODS[name](closed_form.gaussian(mean, cov), a, y.expand(400, -1))
    off = float((samples.mean(0) - posterior_mean).norm() / posterior_cov.trace().sqrt())
    assert off < LARGEST[name]
    if name.startswith(("replacement", "RePaint", "CCDF", "MCG")):  # they reproduce the noisy measurement
        assert float((samples @ a.T - y).abs().max()) < 0.05
    assert float((samples @ a.T - y).norm(dim=1).mean()) < 1.0  # the prior's is 2.5
