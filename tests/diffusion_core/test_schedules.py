"""Levels, paths and targets: the 2x2 algebra."""

import math

import pytest
import torch

from diffusion_core import schedules as levels
from diffusion_core.schedules import Level, logsnr_level, sigma_level
from diffusion_core.targets import EPS, FLOW, SCORE, X0, V, edm, from_x0, to_eps, to_x0, unit_weight

UNIT = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
PATHS = {
    "ve": (levels.ve(), UNIT * 50),
    "vp": (levels.vp(), UNIT),
    "sub_vp": (levels.sub_vp(), UNIT),
    "betas": (levels.betas(levels.linear_betas()), UNIT * 999),
    "cosine": (levels.betas(levels.cosine_betas()), UNIT * 3999),
    "trig": (levels.trig(), UNIT),
    "linear": (levels.linear(), UNIT),
    "logsnr": (levels.logsnr(), UNIT),
    "shift": (levels.shift(levels.trig(), 0.5), UNIT),
    "shifted flow": (levels.shift(levels.linear(), 1 / 3), UNIT),
}
TARGETS = {"eps": EPS, "x0": X0, "v": V, "flow": FLOW, "score": SCORE, "edm": edm(0.5)}


@pytest.mark.parametrize("path, t", PATHS.values(), ids=PATHS.keys())
def test_path_gets_noisier_and_inverts(path, t):
    level = path(t)
    assert (level.logsnr.diff() < 0).all()
    torch.testing.assert_close(path.invert(level.logsnr), t, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "betas", "trig", "logsnr", "shift"])
def test_variance_preserving_paths_preserve_variance(name):
    path, t = PATHS[name]
    a, s = path(t)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(t), rtol=0, atol=1e-12)


def test_discrete_path_is_the_product_of_its_betas():
    beta = levels.linear_betas(1000)
    keep = torch.cumprod(1 - beta, 0)
    a, s = levels.betas(beta)(torch.arange(1000).double())
    torch.testing.assert_close(a**2, keep, rtol=1e-12, atol=0)
    torch.testing.assert_close(s**2, 1 - keep, rtol=1e-11, atol=0)


def test_shift_moves_logsnr_and_agrees_with_the_flow_formula():
    t = UNIT
    shifted = levels.shift(levels.trig(), 0.25)(t).logsnr - levels.trig()(t).logsnr
    torch.testing.assert_close(shifted, torch.full_like(t, 2 * math.log(0.25)))
    ratio = 3.0  # arXiv 2403.03206, eq. 23: t' = r t / (1 + (r - 1) t)
    _, s = levels.shift(levels.linear(), 1 / ratio)(t)
    torch.testing.assert_close(s, ratio * t / (1 + (ratio - 1) * t))


@pytest.mark.parametrize("path, t", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_round_trip(path, t, target):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(t), 7, dtype=torch.float64, generator=generator)
    level = path(t)
    x = level.corrupt(x0, eps)
    p, q = Level(*target(level)).like(x0)
    y = p * x0 + q * eps
    assert (to_x0(y, x, level, target) - x0).abs().max() < 1e-12
    assert (to_eps(y, x, level, target) - eps).abs().max() < 1e-12
    assert (from_x0(x0, x, level, target) - y).abs().max() < 1e-12 * max(1, y.abs().max())


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_targets_and_weights_ignore_the_gauge(target):
    level = levels.trig()(UNIT)
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
    level = levels.trig()(UNIT)
    torch.testing.assert_close(unit_weight(target, level), weight(level.snr))


def test_levels_without_signal_or_noise_are_finite():
    pure = levels.linear()(torch.tensor(1.0, dtype=torch.float64))
    x = torch.randn(3, 2)
    assert torch.isfinite(to_x0(x, x, pure, FLOW)).all()
    assert float(pure.angle) == pytest.approx(math.pi / 2)
    assert pure.noisier(sigma_level(torch.tensor(1e9)))
