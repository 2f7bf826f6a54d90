"""Guidance: what it evaluates, and how it combines the estimates."""

import pytest
import torch

from diffusion_core import guidance, schedules
from diffusion_core.extras import closed_form
from diffusion_core.sampling import timesteps
from diffusion_core.schedules import Level, sigma_level
from tests.support.toy_mixture import toy

SIGMA = sigma_level(torch.logspace(-2, 1.5, 40, dtype=torch.float64))


def test_negative_and_partial_guidance_withhold_the_right_conditions():
    def denoise(x, here, cond):
        return torch.full_like(x, cond["vec:a"] if "vec:a" in cond else 0.0) + (10 if "vec:b" in cond else 0)

    x = torch.zeros(1, 1)
    here = sigma_level(torch.tensor(1.0))
    cond = {"vec:a": 2.0, "vec:b": 1.0}
    assert float(guidance.cfg(denoise, 3.0)(x, here, cond)) == 36
    assert float(guidance.extrapolate(denoise, guidance.unconditional(denoise, "vec:a"), 3.0)(x, here, cond)) == 16
    assert float(guidance.negative(denoise, {"vec:a": 1.0}, 3.0)(x, here, cond)) == 14


def test_strengths_depend_on_the_level():
    steps = timesteps.karras(5)[:-1]
    limited = guidance.interval(3.0, 0.1, 5.0)
    assert [limited(here) for here in steps] == [3.0 if 0.1 < float(h.sigma) <= 5 else 1.0 for h in steps]
    rising = guidance.ramp(1.0, 4.0)
    assert rising(Level(torch.tensor(0.0), torch.tensor(1.0))) == pytest.approx(1)
    assert rising(timesteps.clean()) == pytest.approx(4)
    swing = guidance.oscillate(steps, 8.0, 1.0, 2)
    assert [swing(here) for here in steps] == [8, 8, 1, 8, 1]
    churned = timesteps.churn([*steps, timesteps.clean()], 1.0)  # each step begins at a raised level
    assert [swing(raised) for raised in churned[1::2]] == [8, 8, 1, 8, 1]


def test_rescale_and_thresholds():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    here = sigma_level(torch.tensor(1.0))

    def plain(x, here, cond):
        return x

    def strong(x, here, cond):
        return 4 * x

    def less(x, here, cond):
        return x / 2

    full = guidance.extrapolate(plain, less, 4.0, rescale=1.0)(x, here, {})
    torch.testing.assert_close(full, x)  # 2.5 x, with the spread of x
    half = guidance.extrapolate(plain, less, 4.0, rescale=0.5)(x, here, {})
    torch.testing.assert_close(half, (2.5 + 1) / 2 * x)
    torch.testing.assert_close(guidance.rescaled(4 * x, x, 0.0), 4 * x)
    assert float(guidance.threshold(strong)(x, here, {}).abs().max()) == 1
    inside = guidance.within(strong, torch.full((50,), -0.5), torch.full((50,), 2.0))(x, here, {})
    torch.testing.assert_close(inside, (4 * x).clamp(-0.5, 2.0))
    dynamic = guidance.dynamic_threshold(strong, 0.9)(x, here, {})
    assert float(dynamic.abs().max()) == pytest.approx(1)
    assert ((dynamic.abs() > 0.999).float().mean(1) - 0.1).abs().max() < 0.03
    small = guidance.dynamic_threshold(plain, 0.9)(x / 100, here, {})
    torch.testing.assert_close(small, x / 100)


def test_classifier_guidance_with_the_exact_classifier_is_the_conditional_denoiser():
    share, means, sds = toy()
    here = schedules.trig()(torch.tensor(0.45, dtype=torch.float64))

    def log_p(x, at):  # of component 2, given the noisy x
        return closed_form.mixture_shares(x, at, share, means, sds)[:, 2].log()

    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    guided = guidance.classifier_guidance(closed_form.mixture(share, means, sds), log_p)(x, here, {})
    alone = closed_form.mixture(torch.ones(1).double(), means[2:3], sds[2:3])(x, here, {})
    torch.testing.assert_close(guided, alone)


def test_self_conditioning_passes_the_first_estimate():
    conditions = []

    def denoise(x, here, cond):
        conditions.append(cond.get("vec:self"))
        return x + (1 if "vec:self" in cond else 5)

    out = guidance.self_condition(denoise, "vec:self")(torch.zeros(1, 2, 1), SIGMA, {})
    assert conditions[0] is None and conditions[1].tolist() == [[5, 5]] and out.flatten().tolist() == [1, 1]


def test_guidance_functions_compose():
    share, means, sds = toy()
    oracle = closed_form.mixture(share, means, sds)
    composed = guidance.threshold(guidance.cfg(oracle, guidance.interval(2, 0.1, 10), rescale=0.7), 3.0)
    here = sigma_level(torch.tensor(0.5, dtype=torch.float64))
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(composed(x, here, {}), oracle(x, here, {}).clamp(-3, 3))  # no condition, no guidance
