"""The samplers and timesteps of `choices` against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_core import choices, error_curve, guidance
from diffusion_core.choices import SAMPLERS, TIMESTEPS, Grid, Known, Sampling
from diffusion_core.denoiser import Denoiser
from diffusion_core.extras import closed_form
from diffusion_core.extras.learned_variance import measured_variance
from diffusion_core.sampling.loop import generate, sample
from diffusion_core.sampling.timestep_search import elbo_cost, match_solution
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.schedules import Level, sigma_level
from diffusion_core.training_choices import RECIPES, Training
from tests.support.toy_mixture import toy

SD = 0.5
EDM = Training("edm")
VALUES = torch.tensor([0.4, 0.1], dtype=torch.float64)  # variances of the data, whose mean square is SD^2
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
WITH_NOISE = [
    name for name, choice in RECIPES.items() if not choice.cold and not choice.tokens and not choice.own_steps
]


def gaussian() -> Denoiser:
    return closed_form.gaussian(MEAN, torch.diag(VALUES))


def made(sampling: Sampling, recipe: str = "edm", known: Known | None = None) -> choices.Made:
    return sampling.make(Training(recipe), Training(recipe).make(SD), known)


ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 2, "unipc": 3, "lms": 4}


def test_every_deterministic_sampler_has_an_order() -> None:
    assert {name for name, choice in SAMPLERS.items() if choice.follows_ode} == set(ORDERS)


def solution_error(sampler: choices.Made) -> float:
    """Mean distance to the exact solution of the ODE at the last noisy level."""
    levels = sampler.visited[:-1]
    x = 80 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = torch.sqrt((VALUES + levels[-1].sigma ** 2) / (VALUES + levels[0].sigma ** 2))
    exact = MEAN + (x - MEAN) * scale
    return float((sample(gaussian(), x, levels, sampler.step, iter(())) - exact).norm(dim=1).mean())


@pytest.mark.parametrize("name", ORDERS)
def test_deterministic_samplers_converge_at_their_order(name: str) -> None:
    errors = [solution_error(made(Sampling(name, n))) for n in (80, 320)]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(ORDERS[name], abs=0.3)
    assert solution_error(made(Sampling(name, 21))) < 0.25


def test_the_adaptive_ode_is_as_exact_as_its_tolerance_and_a_row_does_not_depend_on_its_batch() -> None:
    errors = [
        solution_error(made(Sampling("ode", 18, options={"ode": {"rtol": tolerance, "atol": tolerance}})))
        for tolerance in (1e-3, 1e-6)
    ]
    assert errors[0] < 0.02 and errors[1] < 2e-5
    sampler = made(Sampling("ode"))
    mixture = closed_form.mixture(*toy())
    whole = generate(mixture, sampler.visited, sampler.step, (3,), 0, torch.arange(8))
    alone = generate(mixture, sampler.visited, sampler.step, (3,), 0, torch.tensor([5]))
    torch.testing.assert_close(alone[0], whole[5], rtol=1e-6, atol=1e-6)


NOISY: dict[str, dict[str, float]] = {
    "ddpm": {}, "ddim": {"eta": 0.7}, "analytic_dpm": {}, "euler": {"churn": 20.0}, "heun": {"churn": 20.0}, "restart": {},
    "dpmpp_2m_sde": {}, "dpmpp_3m_sde": {}, "predictor_corrector": {"snr": 0.05},
}  # fmt: skip


def test_every_stochastic_sampler_is_listed() -> None:
    """Consistency sampling is exact for consistency models only, not for the mean of x0 given x."""
    noisy = {name for name in SAMPLERS if Sampling(name, options={name: NOISY[name]} if NOISY.get(name) else {}).noisy}
    assert noisy == set(NOISY) | {"langevin", "consistency", "unmask", "own"}


@pytest.mark.parametrize("name", NOISY)
def test_stochastic_samplers_have_the_mean_and_variance_of_the_data(name: str) -> None:
    options = {"karras": {"sigma_max": 8.0, "sigma_min": 0.01}} | ({name: NOISY[name]} if NOISY[name] else {})
    sampler = made(Sampling(name, 160, "karras", options=options))
    denoiser: Any = gaussian()
    if SAMPLERS[name].variance == "measured":
        denoiser = measured_variance(gaussian(), exact_errors())
    samples = generate(denoiser, sampler.visited, sampler.step, (2,), 0, torch.arange(2000)).double()
    # The standard error of a variance is 3 %.
    torch.testing.assert_close(samples.var(0), VALUES, rtol=0.12, atol=0)
    torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=0.05)


def langevin_variance(visited: Timesteps, rate: float) -> Tensor:
    """The variance of x0_hat at the end: on normal data each step is linear."""
    variance = visited[0].s ** 2 * torch.ones(2, dtype=torch.float64)
    for level, to in pairwise(visited):
        if to.s == level.s:
            kept = 1 - rate * level.s**2 / (2 * (VALUES + level.s**2))
            variance = kept**2 * variance + rate * level.s**2
    gain = VALUES / (VALUES + visited[-2].s ** 2)
    return gain**2 * variance


def test_annealed_langevin_dynamics_has_its_own_variance_and_with_many_steps_that_of_the_data() -> None:
    sampler = made(Sampling("langevin", 10, options={"langevin": {"rate": 0.3, "repeats": 10}}))
    samples = generate(gaussian(), sampler.visited, sampler.step, (2,), 0, torch.arange(4000)).double()
    torch.testing.assert_close(samples.var(0), langevin_variance(sampler.visited, 0.3), rtol=0.08, atol=0)
    many = made(Sampling("langevin", 20, options={"langevin": {"rate": 0.1, "repeats": 300}}))
    torch.testing.assert_close(langevin_variance(many.visited, 0.1), VALUES, rtol=0.03, atol=0)


def exact_errors(variance: float | None = None) -> error_curve.ErrorCurve:
    """The mean squared error of the exact denoiser of the Gaussian data."""
    sigmas = error_curve.spaced(0.002, 100.0, 60)
    values = VALUES if variance is None else torch.full((2,), variance, dtype=torch.float64)
    return error_curve.ErrorCurve(
        sigmas, [float((values * s**2 / (values + s**2)).mean()) for s in sigmas]
    )  # fmt: skip


def test_analytic_dpm_is_exact_in_few_steps_for_isotropic_data() -> None:
    sampler = made(Sampling("analytic_dpm", 4, "karras"))
    data = closed_form.gaussian(torch.zeros(2).double(), SD**2 * torch.eye(2).double())
    ids = torch.arange(4000)
    exact, plain = (
        generate(denoiser, sampler.visited, sampler.step, (2,), 0, ids).var()
        for denoiser in (measured_variance(data, exact_errors(SD**2)), data)
    )
    assert float(exact) == pytest.approx(SD**2, rel=0.04)
    assert float(plain) < 0.5 * SD**2


def test_measured_errors_are_those_of_the_denoiser() -> None:
    x0 = MEAN + torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * VALUES.sqrt()
    curve = error_curve.measure(gaussian(), x0, error_curve.spaced(0.01, 50.0, 12))
    for sigma in (0.001, 0.07, 0.4, 3.0, 500.0):  # two of them outside of the measured range
        level = sigma_level(torch.tensor(sigma, dtype=torch.float64))
        exact = float((VALUES * sigma**2 / (VALUES + sigma**2)).mean())
        assert float(curve(level)) == pytest.approx(exact, rel=0.1)
    both = curve(Level(torch.ones(2).double(), torch.tensor([0.07, 3.0]).double()))
    assert both.shape == (2,) and both[0] < both[1]
    flow = Level(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    assert float(curve(flow)) == pytest.approx(curve.errors[-1])


@pytest.mark.parametrize("recipe", WITH_NOISE)
def test_timesteps_decrease_between_the_right_ends(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "FINE", 100)  # fewer levels are made sooner
    training = Training(recipe)
    grid = Grid(recipe, training.make(SD), 7)
    smallest, largest = grid.sigmas()
    noisiest = grid.fine[0].angle
    known = Known(exact_errors(), lambda step, timesteps, fine, iterations, rate: timesteps)
    sampler = next(iter(RECIPES[recipe].samplers), "ddim")
    for steps in (1, 7):
        for name in (None, *TIMESTEPS):
            if name == "learned" and sampler != "ddim":
                continue
            if name == "searched" and RECIPES[recipe].mixed:
                continue
            timesteps = made(Sampling(sampler, steps, name), recipe, known).visited
            assert len(timesteps) == steps + 1, name
            assert all(a.noisier(b) for a, b in pairwise(timesteps)), name
            assert float(timesteps[-1].s) == 0
            if name in ("uniform", "quadratic", "trailing"):
                assert float(timesteps[0].angle) == pytest.approx(float(noisiest), abs=1e-9)
            if name == "karras":
                assert float(timesteps[0].sigma) == pytest.approx(largest)
            if name in ("karras", "uniform", "quadratic", "leading", "searched") and steps > 1:
                assert float(timesteps[-2].sigma) == pytest.approx(smallest, rel=1e-6)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("ddpm", "trailing"),
        ("iddpm", "leading"),
        ("edm", "karras"),
        ("rectified_flow", "trailing"),
        ("score_vp", "uniform"),
    ],
)
def test_the_papers_timesteps_are_those_of_their_recipes(recipe: str, name: str) -> None:
    own, named = (made(Sampling("ddim", 10, chosen), recipe).visited for chosen in (None, name))
    for a, b in zip(own, named, strict=True):
        assert float(a.angle) == pytest.approx(float(b.angle), abs=1e-9)


def test_searched_timesteps_cost_less_than_the_recipes_own() -> None:
    errors = exact_errors()

    def cost(timesteps: Timesteps) -> float:
        noisy = timesteps[:-1]
        table = elbo_cost(noisy, torch.stack([errors(level) for level in noisy]))
        return float(table.diagonal(1).sum())

    own, searched = (made(Sampling("ddpm", 8, name), "ddpm", Known(errors)).visited for name in (None, "searched"))
    # Both end at the least noisy level that they visit; the search ends at the least noisy of all.
    ends_alike = [*own[:-2], searched[-2], own[-1]]
    assert cost(searched) < 0.8 * cost(ends_alike)


@pytest.mark.slow
def test_learned_timesteps_are_nearer_to_the_fine_solution() -> None:
    denoiser = closed_form.mixture(*toy())
    noise = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def match(step: Any, timesteps: Timesteps, fine: Timesteps, iterations: int, rate: float) -> Timesteps:
        return match_solution(denoiser, step, timesteps, fine, noise, None, iterations, rate)

    def error(timesteps: Timesteps, step: Any) -> float:
        fresh = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        fine = made(Sampling("dpmpp_2m", 100, "karras")).visited
        start = fine[0].s * fresh
        ours, goal = (sample(denoiser, start, levels, step, iter(())) for levels in (timesteps, fine))
        return float((ours - goal).square().mean())

    plain = made(Sampling("dpmpp_2m", 6, "karras"))
    learned = made(
        Sampling("dpmpp_2m", 6, "learned", options={"learned": {"iterations": 12, "fine": 32}}),
        known=Known(match=match),
    )
    assert error(learned.visited, learned.step) < 0.7 * error(plain.visited, plain.step)


def test_sampling_can_start_below_the_noisiest_level() -> None:
    """TDPM: from the exact marginal at sigma 1 the samples have the data's law."""
    for name in ("heun", "ode", "ddpm"):
        sampler = made(Sampling(name, 200, start=1.0))
        assert float(sampler.visited[0].sigma) == 1.0
        start = (
            MEAN + torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * VALUES.sqrt()
        )
        samples = generate(
            gaussian(), sampler.visited, sampler.step, (2,), 0, torch.arange(4000), batch=1500, start=start
        ).double()
        torch.testing.assert_close(samples.var(0), VALUES, rtol=0.08, atol=0)
        torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=0.03)


def test_a_restart_interval_that_lies_between_two_timesteps_is_still_repeated() -> None:
    base = made(Sampling("heun", 4)).visited
    again = made(Sampling("restart", 4, options={"restart": {"low": 0.1, "high": 0.11, "times": 3}})).visited
    raised = [to for level, to in pairwise(again) if to.noisier(level)]
    assert len(raised) == 3 and len(again) > len(base)


def test_strengths_of_a_batch_of_levels_are_those_of_its_levels() -> None:
    timesteps = made(Sampling("ddim", 9)).visited[:-1]
    batch = Level(torch.stack([level.a for level in timesteps]), torch.stack([level.s for level in timesteps]))
    for name in choices.GUIDANCE_SCHEDULES:
        schedule = choices.GUIDANCE_SCHEDULES[name]
        strength = schedule.make(3.0, choices.options_of(choices.GUIDANCE_SCHEDULES, name, {}), timesteps)
        limited = guidance.interval(strength, 0.1, 30.0)
        assert callable(limited)
        one_by_one = [limited(level) for level in timesteps]
        assert torch.as_tensor(limited(batch)).tolist() == pytest.approx(one_by_one)
        assert set(one_by_one) != {1.0}


def test_a_batch_of_levels_is_guided_row_by_row() -> None:
    def estimate(value: float) -> Denoiser:
        return lambda x, level, cond: torch.full_like(x, value)

    guided = guidance.extrapolate(estimate(2.0), estimate(1.0), guidance.interval(3.0, 0.5, 5.0))
    sigmas = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    x: Tensor = torch.zeros(3, 2, dtype=torch.float64)
    assert guided(x, sigma_level(sigmas), {})[:, 0].tolist() == [2.0, 4.0, 2.0]


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling("unipc", options={"unipc": {"eta": 0.5}}), "method unipc has no parameter eta; it has order"),
        (Sampling("ddim", options={"ddpm": {"eta": 0.5}}), "no method with options 'ddpm'"),
        (Sampling("ddim", options={"ddim": {"eta": 1.5}}), "eta of method ddim must be a number from 0 to 1"),
        (Sampling("unipc", options={"unipc": {"order": 2.5}}), "order of method unipc must be an integer"),
        (Sampling("restart", options={"restart": {"low": 2.0}}), "low of method restart must be below high"),
        (Sampling("ode", timesteps="karras"), "timesteps must be null for sampler ode"),
        (Sampling("langevin", timesteps="uniform"), "timesteps must be null or karras for sampler langevin"),
        (Sampling("ddpm", timesteps="learned"), "timesteps learned needs a sampler that adds no noise"),
        (Sampling("ddim", timesteps="learned", options={"ddim": {"eta": 0.1}}), "needs a sampler that adds no noise"),
        (Sampling("euler_a"), "there is no sampler 'euler_a'; choose one of ddpm, ddim"),
        (Sampling("cold", start=1.0), "start must be null for sampler cold"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(sampling: Sampling, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampling.check()


@pytest.mark.parametrize(
    ("sampling", "training", "words"),
    [
        (Sampling("unipc"), Training("ncsn"), "sampler unipc does not go with recipe ncsn"),
        (Sampling("ode"), Training("cold_mask"), "sampler ode does not go with recipe cold_mask"),
        (Sampling("cold"), EDM, "sampler cold needs a recipe that adds no noise"),
        (Sampling("ddim", 60), Training("ddpm", {"total": 50}), "steps must be at most 50, the total of recipe ddpm"),
    ],
)
def test_a_recipe_refuses_what_it_cannot_be_sampled_with(sampling: Sampling, training: Training, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampling.check_recipe(training)
