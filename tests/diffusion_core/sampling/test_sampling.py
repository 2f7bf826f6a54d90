"""Transitions, timesteps, solvers and the sampling loop against closed forms."""

import itertools
import math

import pytest
import torch

from diffusion_core import guidance, rng, schedules
from diffusion_core.extras import closed_form
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import generate, sample
from diffusion_core.sampling.solvers import FLOW_ODE, SIGMA_ODE, ddim, dpmpp_2m, dpmpp_3m, heun, lms, unipc
from diffusion_core.sampling.transition import renoise, split_noise, transition

STEPS = {
    "ddim": ddim(),
    "ancestral": ddim(1.0),
    "eta": ddim(0.4),
    "heun": heun(),
    "flow heun": heun(FLOW_ODE),
    "dpmpp_2m": dpmpp_2m(),
    "dpmpp_2m_sde": dpmpp_2m(1.0),
    "dpmpp_3m": dpmpp_3m(),
    "dpmpp_3m_sde": dpmpp_3m(1.0),
    "lms": lms(),
    "flow lms": lms(3, FLOW_ODE),
    "unipc": unipc(),
    "unipc3": unipc(3),
}
VP = schedules.betas(schedules.linear_betas())
TIMESTEPS = {
    "karras": timesteps.karras(7),
    "flow": timesteps.uniform(schedules.linear(), 7),
    "trailing": timesteps.trailing(VP, 7, 1000),
    "sub_vp": timesteps.uniform(schedules.sub_vp(), 7),
    "churn": timesteps.churn(timesteps.karras(7), 3.0),
    "restart": timesteps.restart(timesteps.karras(9), 0.1, 5.0, 2),
    "repaint": timesteps.repaint(timesteps.karras(5), 3),
    "start": timesteps.truncate(timesteps.karras(9), timesteps.karras(5)[2]),
}


class Recorder:
    """A noise stream of basis vectors, so that the result contains the sampler's coefficients."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 2

    def __iter__(self):
        return self

    def __next__(self):
        out = torch.zeros(1, self.size, dtype=torch.float64)
        out[0, self.count] = 1.0
        self.count += 1
        return out


@pytest.mark.parametrize("steps", TIMESTEPS.values(), ids=TIMESTEPS.keys())
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_mean_and_variance_law(step, steps):
    """For a constant estimate x0, x is a x0 + s n at every level, where n is a unit vector of independent noises."""
    x0 = torch.zeros(1, 200, dtype=torch.float64)
    x0[0, 0] = 1.0
    start = torch.zeros_like(x0)
    start[0, 1] = 1.0
    visited = []
    sample(
        lambda x, here, cond: x0,
        steps[0].corrupt(x0, start),
        steps,
        step,
        Recorder(200),
        constrain=lambda x, here, noise: visited.append((here, x)) or x,
    )
    for here, x in visited:
        assert float(x[0, 0]) == pytest.approx(float(here.a), abs=1e-12)
        assert float(x[0, 1:].norm()) == pytest.approx(float(here.s), rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("steps", TIMESTEPS.values(), ids=TIMESTEPS.keys())
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_one_point_data_is_exact(step, steps):
    point = torch.tensor([[1.5, -2.0, 0.25]], dtype=torch.float64)
    ids = torch.arange(5)
    got = generate(closed_form.empirical(point), steps, step, (3,), 0, ids)
    torch.testing.assert_close(got, point.float().expand(5, 3), rtol=1e-6, atol=1e-6)


def test_transition_then_renoise_has_the_variance_of_the_level():
    """An ancestral step to less noise, and back by adding noise."""
    low, high = timesteps.levels(schedules.linear(), torch.tensor([0.3, 0.8]))
    n = torch.eye(4, dtype=torch.float64)[1:]
    x0 = torch.eye(4, dtype=torch.float64)[:1]
    x = high.corrupt(x0, n[:1])
    down = transition(x, x0, high, low, 1.0, n[1:2])
    up = renoise(down, low, high, n[2:])
    assert float(up[0, 0]) == pytest.approx(float(high.a))
    assert float(up[0, 1:].norm()) == pytest.approx(float(high.s))


def gaussian_problem():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator)).Q
    values = torch.linspace(0.05, 2, 8, dtype=torch.float64)
    mean = torch.randn(8, dtype=torch.float64, generator=generator)
    return mean, basis @ torch.diag(values) @ basis.T, values, basis


def exact_flow(x, mean, values, basis, start, end):
    """The solution of the probability-flow ODE for normal data at levels (1, sigma): a rescaling of principal coordinates."""
    scale = torch.sqrt((values + end.sigma**2) / (values + start.sigma**2))
    return mean + ((x / start.a - mean) @ basis * scale) @ basis.T


@pytest.mark.parametrize(
    "step, order, error32",
    [
        (ddim(), 1, 1.4e-1),
        (heun(), 2, 2.3e-2),
        (dpmpp_2m(), 2, 2.5e-2),
        (lms(2), 2, 4e-2),
        (unipc(2), 3, 2.4e-2),
    ],
    ids=["ddim", "heun", "dpmpp_2m", "lms2", "unipc2"],
)
def test_convergence_order(step, order, error32):
    mean, cov, values, basis = gaussian_problem()
    x = 80 * torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def error(n):
        steps = timesteps.karras(n + 1)[:-1]
        got = sample(closed_form.gaussian(mean, cov), x, steps, step, iter(()))
        return float((got - exact_flow(x, mean, values, basis, steps[0], steps[-1])).norm(dim=1).mean())

    slope = math.log2(error(128) / error(512)) / 2
    assert slope == pytest.approx(order, abs=0.1)
    assert error(32) < 2 * error32


def test_flow_heun_is_second_order_on_the_linear_path():
    mean, cov, values, basis = gaussian_problem()
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def error(n):
        steps = timesteps.uniform(schedules.linear(), n, high=0.999, low=0.01)
        got = sample(closed_form.gaussian(mean, cov), x, steps, heun(FLOW_ODE), iter(()))
        want = exact_flow(x, mean, values, basis, steps[0], steps[-1])
        return float((got / steps[-1].a - want).norm(dim=1).mean())

    assert math.log2(error(64) / error(256)) / 2 == pytest.approx(2, abs=0.1)


def test_euler_is_ddim_in_both_forms_of_the_ode():
    x = torch.randn(3, 2, dtype=torch.float64)
    x0 = torch.randn(3, 2, dtype=torch.float64)
    here, there = timesteps.uniform(schedules.trig(), 4)[1:3]
    eps = (x - here.a * x0) / here.s
    for ode in (SIGMA_ODE, FLOW_ODE):
        slope = ode.direction(x0, eps)
        moved = ode.scale(there) * (x / ode.scale(here) + (ode.coordinate(there) - ode.coordinate(here)) * slope)
        torch.testing.assert_close(moved, transition(x, x0, here, there))


def test_samples_do_not_depend_on_their_batch():
    denoise = closed_form.mixture(torch.tensor([0.3, 0.7]), torch.randn(2, 4), 0.2)
    ids = torch.arange(11)
    for step in (ddim(1.0), heun(), dpmpp_2m(1.0)):
        whole = generate(denoise, timesteps.karras(8), step, (4,), 3, ids)
        parts = generate(denoise, timesteps.karras(8), step, (4,), 3, ids, batch=3)
        one = generate(denoise, timesteps.karras(8), step, (4,), 3, torch.tensor([7]))
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one, whole[7:8], rtol=1e-6, atol=1e-6)


def test_conditions_follow_their_samples_through_batches():
    targets = torch.arange(5, dtype=torch.float32)[:, None]
    got = generate(
        lambda x, here, cond: cond["vec:goal"].to(x).expand_as(x),
        timesteps.karras(4), ddim(), (2,), 0, torch.arange(5), cond={"vec:goal": targets}, batch=2,
    )  # fmt: skip
    torch.testing.assert_close(got, targets.expand(5, 2), rtol=1e-5, atol=1e-5)


def test_progress_counts_every_step_of_every_batch():
    calls = []
    generate(
        closed_form.empirical(torch.zeros(1, 2)), timesteps.karras(4), ddim(), (2,), 0, torch.arange(5), batch=2,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(i, 12) for i in range(1, 13)]


def test_gaussian_oracle_is_the_posterior_mean():
    mean, cov, _, _ = gaussian_problem()
    here = schedules.trig()(torch.tensor(0.4, dtype=torch.float64))
    x = torch.randn(5, 8, dtype=torch.float64)
    gain = here.a * cov @ torch.linalg.inv(here.a**2 * cov + here.s**2 * torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(closed_form.gaussian(mean, cov)(x, here, {}), mean + (x - here.a * mean) @ gain.T)


def test_mixture_oracle_agrees_with_the_score_of_its_density():
    """Tweedie: E[x0 | x] = (x + s^2 grad log p(x)) / a, the gradient taken by autograd."""
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sd = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    here = schedules.linear()(torch.tensor([0.2, 0.5, 0.9, 1 - 1e-3], dtype=torch.float64))
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    closed_form.mixture_logp(x, here, weights, means, sd).sum().backward()
    a, s = here.like(x)
    torch.testing.assert_close(
        closed_form.mixture(weights, means, sd)(x.detach(), here, {}), (x.detach() + s**2 * x.grad) / a
    )


def test_empirical_denoiser_samples_are_training_points():
    points = torch.randn(40, 3, 2, generator=torch.Generator().manual_seed(4))
    got = generate(closed_form.empirical(points), timesteps.karras(18), heun(), (3, 2), 0, torch.arange(100))
    nearest = torch.cdist(got.flatten(1), points.flatten(1)).min(1).values
    assert float(nearest.max()) < 0.01


def test_timesteps_have_their_end_points():
    karras = timesteps.karras(18)
    assert len(karras) == 19 and float(karras[0].s) == pytest.approx(80) and float(karras[-1].s) == 0
    assert float(karras[-2].s) == pytest.approx(0.002)
    trailing = timesteps.trailing(VP, 10, 1000)
    assert trailing[0] == VP(torch.tensor(999.0).double())
    assert [here.noisier(there) for here, there in itertools.pairwise(trailing)] == [True] * 10
    leading = timesteps.leading(VP, 10, 1000)
    assert leading[0] == VP(torch.tensor(900.0).double()) and leading[-2] == VP(torch.tensor(0.0).double())
    for spacing in (timesteps.trailing, timesteps.leading):
        assert len(spacing(VP, 1000, 1000)) == 1001
        for count in (0, 1001):
            with pytest.raises(ValueError, match="1 to 1000 steps"):
                spacing(VP, count, 1000)
    start = timesteps.truncate(karras, karras[4])
    assert start == karras[4:]
    with pytest.raises(ValueError, match="no timestep"):
        timesteps.restart(karras, 100, 200, 1)


def test_guidance_of_x0_is_guidance_of_eps():
    good, bad = (closed_form.mixture(torch.ones(1), torch.full((1, 2), m), 0.3) for m in (1.0, -1.0))
    here = schedules.trig()(torch.tensor(0.6, dtype=torch.float64))
    x = torch.randn(6, 2, dtype=torch.float64)
    guided = guidance.extrapolate(good, bad, 2.5)(x, here, {})
    eps = [(x - here.a * d(x, here, {})) / here.s for d in (good, bad)]
    mixed = eps[1] + 2.5 * (eps[0] - eps[1])
    torch.testing.assert_close(guided, (x - here.s * mixed) / here.a)
    one = guidance.extrapolate(good, bad, 1.0)(x, here, {})
    assert torch.equal(one, good(x, here, {}))


def test_sampling_starts_with_the_noise_of_the_seed():
    ids = torch.tensor([4, 9])
    got = generate(lambda x, here, cond: torch.zeros_like(x), timesteps.karras(1)[:1], ddim(), (3,), 2, ids)
    torch.testing.assert_close(got, 80 * rng.normal((3,), rng.fold(2, 0), ids))


def test_the_split_of_noise_keeps_its_square():
    high, low = timesteps.karras(3)[:2]
    for eta in (0.0, 0.3, 1.0):
        kept, added = split_noise(high, low, eta)
        torch.testing.assert_close(kept**2 + added**2, low.s**2)
