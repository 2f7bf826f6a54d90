"""The two transitions between noise levels: `transition` removes noise given an estimate of x0, `renoise` adds noise."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.schedules import Level, expand_like


def transition(
    x: Tensor,
    x0: Tensor,
    level: Level,
    to: Level,
    eta: float | Tensor = 0.0,
    noise: Tensor | None = None,
    var: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """x `[B, *S]` carried from `level` to `to`, which has no more noise, given the estimate x0.

    eta = 0 is DDIM, eta = 1 is DDPM's ancestral step (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16). The result is
    c_x x + c_0 x0 + c_n noise with c_x a + c_0 = a' and (c_x s)^2 + c_n^2 = s'^2, where (a, s) is `level` and (a', s') is
    `to`; it is exact if x0 is. If the variance of x0 given x `[B, *S]` is known, c_0^2 var is added to c_n^2 unless eta = 0.
    With a `share` `[B, *S]` in [0, 1] the noise variance is (c_n^2 + c_0^2 var)^share (c_n^2)^(1 - share) instead, the
    interpolation in logarithms of Improved DDPM (arXiv 2102.09672, eq. 15).
    """
    kept, added = split_noise(level, to, eta)
    ratio = kept / level.s
    c_x, c_0 = Level(ratio, to.a - ratio * level.a).like(x)
    mean = c_x * x + c_0 * x0
    if noise is None:
        return mean
    c_n = expand_like(added, x)
    if var is None:
        return mean + c_n * noise
    variance = c_n**2 + c_0**2 * var
    if share is not None:
        variance = variance**share * (c_n**2) ** (1 - share)
    return mean + torch.sqrt(variance) * noise


def split_noise(level: Level, to: Level, eta: float | Tensor) -> tuple[Tensor, Tensor]:
    """The noise s' of level `to` split into (kept from x, newly added); their squares sum to s'^2."""
    ratio = (level.a * to.s) / (to.a * level.s)  # sigma' / sigma, finite where a flow starts
    added = to.s * eta * torch.sqrt((1 - ratio**2).clamp(min=0))
    return torch.sqrt((to.s**2 - added**2).clamp(min=0)), added


def renoise(x: Tensor, level: Level, to: Level, noise: Tensor) -> Tensor:
    """x `[B, *S]` carried from `level` to `to`, which has no less noise, by the forward process; needs level.a > 0."""
    ratio = to.a / level.a
    added = torch.sqrt((to.s**2 - (ratio * level.s) ** 2).clamp(min=0))
    c_x, c_n = Level(ratio, added).like(x)
    return c_x * x + c_n * noise


def noise_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise in x given the estimate x0; needs s > 0."""
    a, s = level.like(x)
    return (x - a * x0) / s
