"""Noise levels, schedules and targets."""

import math

import pytest
import torch

from diffusion_core import schedules
from diffusion_core.schedules import Level, logsnr_level, sigma_level
from diffusion_core.targets import EPS, FLOW, SCORE, X0, V, edm, from_x0, to_eps, to_x0, unit_weight

UNIT = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
SCHEDULES = {
    "ve": (schedules.ve(), UNIT * 50),
    "vp": (schedules.vp(), UNIT),
    "sub_vp": (schedules.sub_vp(), UNIT),
    "betas": (schedules.betas(schedules.linear_betas()), UNIT * 999),
    "cosine": (schedules.betas(schedules.cosine_betas()), UNIT * 3999),
    "trig": (schedules.trig(), UNIT),
    "linear": (schedules.linear(), UNIT),
    "logsnr": (schedules.logsnr(), UNIT),
    "shift": (schedules.shift(schedules.trig(), 0.5), UNIT),
    "shifted flow": (schedules.shift(schedules.linear(), 1 / 3), UNIT),
}
TARGETS = {"eps": EPS, "x0": X0, "v": V, "flow": FLOW, "score": SCORE, "edm": edm(0.5)}


@pytest.mark.parametrize("schedule, t", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_noise_grows_with_t_and_invert_is_the_inverse(schedule, t):
    level = schedule(t)
    assert (level.logsnr.diff() < 0).all()
    torch.testing.assert_close(schedule.invert(level.logsnr), t, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "betas", "trig", "logsnr", "shift"])
def test_variance_preserving_schedules_have_unit_variance(name):
    schedule, t = SCHEDULES[name]
    a, s = schedule(t)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(t), rtol=0, atol=1e-12)


def test_discrete_schedule_is_the_product_of_its_betas():
    beta = schedules.linear_betas(1000)
    keep = torch.cumprod(1 - beta, 0)
    a, s = schedules.betas(beta)(torch.arange(1000).double())
    torch.testing.assert_close(a**2, keep, rtol=1e-12, atol=0)
    torch.testing.assert_close(s**2, 1 - keep, rtol=1e-11, atol=0)


def test_shift_changes_logsnr_and_agrees_with_the_flow_formula():
    t = UNIT
    shifted = schedules.shift(schedules.trig(), 0.25)(t).logsnr - schedules.trig()(t).logsnr
    torch.testing.assert_close(shifted, torch.full_like(t, 2 * math.log(0.25)))
    ratio = 3.0  # arXiv 2403.03206, eq. 23: t' = r t / (1 + (r - 1) t)
    _, s = schedules.shift(schedules.linear(), 1 / ratio)(t)
    torch.testing.assert_close(s, ratio * t / (1 + (ratio - 1) * t))


@pytest.mark.parametrize("schedule, t", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_targets_determine_x0_and_noise(schedule, t, target):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(t), 7, dtype=torch.float64, generator=generator)
    level = schedule(t)
    x = level.corrupt(x0, eps)
    p, q = Level(*target(level)).like(x0)
    y = p * x0 + q * eps
    assert (to_x0(y, x, level, target) - x0).abs().max() < 1e-12
    assert (to_eps(y, x, level, target) - eps).abs().max() < 1e-12
    assert (from_x0(x0, x, level, target) - y).abs().max() < 1e-12 * max(1, y.abs().max())


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_targets_and_weights_do_not_depend_on_the_scale_of_the_level(target):
    level = schedules.trig()(UNIT)
    scaled = Level(3 * level.a, 3 * level.s)
    for ours, other in zip(target(level), target(scaled), strict=True):
        torch.testing.assert_close(ours, other)
    torch.testing.assert_close(unit_weight(target, level), unit_weight(target, scaled))


def test_edm_coefficients_and_weight_follow_from_the_target():
    sd = 0.5
    sigma = torch.logspace(-3, 2, 60, dtype=torch.float64)
    level = sigma_level(sigma)
    x, y = torch.randn(2, 60, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    root = torch.sqrt(sigma**2 + sd**2)
    published = (sd**2 / root**2)[:, None] * x + (sigma * sd / root)[:, None] * y
    torch.testing.assert_close(to_x0(y, x, level, edm(sd)), published, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(unit_weight(edm(sd), level), root**2 / (sigma * sd) ** 2, rtol=1e-13, atol=0)


def test_edm_of_unit_data_is_minus_v():
    level = logsnr_level(torch.linspace(-8, 8, 33, dtype=torch.float64))
    for ours, v in zip(edm(1.0)(level), V(level), strict=True):
        torch.testing.assert_close(ours, -v)


@pytest.mark.parametrize(
    "target, weight",
    [
        (EPS, lambda snr: snr),
        (X0, torch.ones_like),
        (V, lambda snr: snr + 1),
        (FLOW, lambda snr: (1 + snr.sqrt()) ** 2),
        (SCORE, lambda snr: snr**2),
    ],
)
def test_unit_weights_in_closed_form(target, weight):
    level = schedules.trig()(UNIT)
    torch.testing.assert_close(unit_weight(target, level), weight(level.snr))


def test_levels_without_signal_or_noise_are_finite():
    pure = schedules.linear()(torch.tensor(1.0, dtype=torch.float64))
    x = torch.randn(3, 2)
    assert torch.isfinite(to_x0(x, x, pure, FLOW)).all()
    assert float(pure.angle) == pytest.approx(math.pi / 2)
    assert pure.noisier(sigma_level(torch.tensor(1e9)))
