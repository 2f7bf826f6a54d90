"""The constants of every preset against those that its paper publishes, written out here once more."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from diffusion_core import presets, schedules
from diffusion_core.extras.vdm import LearnedSchedule
from diffusion_core.losses import iid, stratified, unit
from diffusion_core.recipe import Recipe
from diffusion_core.sampling.loop import Estimate
from diffusion_core.schedules import Level
from diffusion_core.targets import EPS, FLOW, V, edm
from diffusion_core.training_choices import RECIPES, Training

U = torch.tensor([1e-9, 0.02275013194817921, 0.5, 0.9772498680518208, 1 - 1e-9], dtype=torch.float64)  # -2 to 2 sds
LEVELS = schedules.sigma_level(torch.tensor([0.01, 0.3, 1.0, 7.0, 60.0], dtype=torch.float64))


def density(recipe: Recipe, u: torch.Tensor = U) -> Level:
    level = recipe.density(u)
    return Level(level.a.detach(), level.s.detach())


def sigmas(recipe: Recipe, steps: int) -> list[float]:
    """The sigmas of the recipe's timesteps that are neither 0 nor infinite."""
    return [float(level.sigma) for level in recipe.timesteps(steps) if level.s > 0 and level.a > 1e-6]


def weights_like(recipe: Recipe, target: object) -> None:
    torch.testing.assert_close(recipe.weight(LEVELS), unit(target)(LEVELS))


def test_ddpm_is_that_of_section_4() -> None:
    """1000 levels, betas from 1e-4 to 0.02, the squared error of the noise, independent levels."""
    recipe = presets.ddpm()
    beta = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    level = density(recipe)
    assert float(level.a[0]) ** 2 == pytest.approx(1 - 1e-4, rel=1e-9)
    assert float(level.a[-1]) ** 2 == pytest.approx(math.prod(1 - b for b in beta), rel=1e-9)
    assert recipe.target is EPS and recipe.draw is iid and len(recipe.timesteps(1000)) == 1001
    weights_like(recipe, EPS)


@pytest.mark.parametrize("total", [20, 100, 4000])
def test_a_chain_of_another_length_ends_in_as_much_noise(total: int) -> None:
    ends = [float(density(presets.ddpm(total=n)).a[-1]) ** 2 for n in (1000, total)]
    assert ends[1] < 2 * ends[0]


def test_improved_ddpm_is_that_of_section_3() -> None:
    """4000 levels of the cosine schedule with offset 0.008 and betas of at most 0.999."""

    def f(t: float) -> float:
        return math.cos((t / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2

    recipe = presets.iddpm()
    level = density(recipe, torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64))
    for index, t in enumerate((1, 1001, 2001)):
        assert float(level.a[index]) ** 2 == pytest.approx(f(t) / f(0), rel=1e-9)
    assert recipe.target is EPS and float(schedules.cosine_betas(4000).max()) == 0.999
    weights_like(recipe, EPS)


def test_ncsn_has_geometric_levels_and_the_papers_step_size() -> None:
    """sigma ends at 0.01 and epsilon = 2e-5, so that the step is 2e-5 / 0.01^2 = 0.2 times sigma^2 (section 5)."""
    recipe = presets.ncsn()
    visited = sorted(set(sigmas(recipe, 1)))
    ratios = [b / a for a, b in pairwise(visited)]
    assert visited[0] == pytest.approx(0.01) and max(ratios) == pytest.approx(min(ratios))
    x = torch.zeros(1, 1, dtype=torch.float64)
    level = schedules.sigma_level(torch.tensor(2.0, dtype=torch.float64))
    history = [Estimate(level, x, x - 2.0)]  # an estimate of the noise of 1
    moved = recipe.step(history, level, lambda x, level: x, iter([torch.zeros_like(x)]))
    assert float(moved) == pytest.approx(-2.0 * (2e-5 / 0.01**2) / 2)
    weights_like(recipe, EPS)


def test_vp_has_beta_from_a_tenth_to_twenty() -> None:
    """log a = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2 (eq. 33), t from 1e-5 in training and 1e-3 in sampling."""
    recipe = presets.score_sde(schedules.vp())
    times = [1e-5 + (1 - 1e-5) * float(u) for u in U]
    for t, a in zip(times, density(recipe).a.tolist(), strict=True):
        assert math.log(a) == pytest.approx(-(t**2) * 19.9 / 4 - t * 0.1 / 2, rel=1e-6)
    least = math.exp(1e-6 * 19.9 / 2 + 1e-3 * 0.1) - 1
    assert min(sigmas(recipe, 10)) == pytest.approx(math.sqrt(least), rel=1e-6)
    sub_vp = presets.score_sde(schedules.sub_vp())
    torch.testing.assert_close(density(sub_vp).a, density(recipe).a)
    torch.testing.assert_close(density(sub_vp).s, 1 - density(recipe).a ** 2)
    weights_like(recipe, EPS)


def test_ve_has_sigma_from_a_hundredth_to_fifty() -> None:
    """Appendix C: sigma_min 0.01; sigma_max 50 for CIFAR-10; log sigma uniform."""
    recipe = presets.score_ve()
    expected = 0.01 * (50 / 0.01) ** U
    torch.testing.assert_close(density(recipe).sigma, expected)
    assert (min(sigmas(recipe, 10)), max(sigmas(recipe, 10))) == pytest.approx((0.01, 50.0))
    weights_like(recipe, EPS)


def test_vdm_starts_with_log_snr_from_13_3_to_minus_5() -> None:
    recipe = presets.vdm(LearnedSchedule())
    logsnr = density(recipe, torch.tensor([0.0, 1.0], dtype=torch.float64)).logsnr
    torch.testing.assert_close(logsnr, torch.tensor([13.3, -5.0], dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert recipe.target is EPS and recipe.draw is stratified


@pytest.mark.parametrize(
    ("recipe", "mean", "std"),
    [(presets.edm(), -1.2, 1.2), (presets.edm2(), -0.4, 1.0), (presets.trigflow(), -1.0, 1.4)],
    ids=["edm", "edm2", "trigflow"],
)
def test_log_sigma_is_normal_as_published(recipe: Recipe, mean: float, std: float) -> None:
    at = density(recipe).sigma.log()
    expected = torch.tensor([mean - 2 * std, mean, mean + 2 * std], dtype=torch.float64)
    torch.testing.assert_close(at[1:4], expected, rtol=1e-6, atol=1e-6)
    assert recipe.sd == 0.5
    weights_like(recipe, edm(0.5))


def test_edm_has_the_published_timesteps_and_weight() -> None:
    """rho = 7, sigma from 0.002 to 80, weight (sigma^2 + sd^2) / (sigma sd)^2 (Table 1)."""
    for recipe in (presets.edm(), presets.edm2()):
        expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
        assert sigmas(recipe, 18) == pytest.approx(expected)
        sigma = LEVELS.sigma
        torch.testing.assert_close(recipe.weight(LEVELS), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)


@pytest.mark.parametrize("sd", [0.5, 0.2])
def test_trigflow_has_the_angle_of_the_datas_scale(sd: float) -> None:
    """x = cos(t) x0 + sin(t) z with z of standard deviation sd; t is embedded, and the timesteps are even in t (section 3)."""
    recipe = presets.trigflow(sd)
    times = [math.pi / 2 * (10 - i) / 10 for i in range(11)]
    for t, level in zip(times, recipe.timesteps(10), strict=True):
        assert (float(level.a), float(level.s)) == pytest.approx((math.cos(t), sd * math.sin(t)), abs=1e-12)
        assert float(recipe.c_noise(level)) == pytest.approx(t, abs=1e-12)


def test_flows_go_straight_and_sd3_draws_logit_normal_times() -> None:
    flow, sd3, shifted = presets.rectified_flow(), presets.sd3(), presets.sd3(shift=3.0)
    torch.testing.assert_close(density(flow).s, U, rtol=0, atol=1e-4)
    torch.testing.assert_close(density(flow).a, 1 - density(flow).s)
    times = torch.sigmoid(torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(density(sd3).s[1:4], times, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(density(shifted).s[1:4], 3 * times / (1 + 2 * times), rtol=1e-6, atol=1e-6)  # eq. 23
    for recipe in (flow, sd3, shifted):
        assert recipe.target is FLOW
        weights_like(recipe, FLOW)


@pytest.mark.parametrize("size", [64, 256])
def test_simple_diffusion_has_the_shifted_cosine_schedule(size: int) -> None:
    """log-SNR = -2 log tan(pi t / 2) + 2 log(64 / size), within +-15 before the shift; v, with the error of the noise."""
    recipe = presets.simple_diffusion(size=size)
    logsnr = density(recipe).logsnr - 2 * math.log(64 / size)
    assert logsnr[[0, 2, 4]].tolist() == pytest.approx([15.0, 0.0, -15.0], abs=1e-4)
    assert recipe.target is V
    weights_like(recipe, EPS)


def test_naming_the_recipes_own_target_changes_nothing() -> None:
    for name, choice in RECIPES.items():
        if choice.targets:
            own, named = (Training(name, target=target).make(0.5) for target in (None, choice.targets[0]))
            assert own.target is named.target
            torch.testing.assert_close(own.weight(LEVELS), named.weight(LEVELS))
