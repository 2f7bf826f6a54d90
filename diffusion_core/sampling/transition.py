"""The two elementary moves between levels, given a clean estimate: down with `transition`, up with `renoise`."""

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
) -> Tensor:
    """x `[B, *S]` at `level` carried to a level with no more noise, if the clean example is x0.

    eta = 0 is DDIM, eta = 1 is DDPM's ancestral step (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16). It is
    c_x x + c_0 x0 + c_n noise with c_x a + c_0 = a' and (c_x s)^2 + c_n^2 = s'^2, so exact where x0 is. If x0 is known with
    a variance `[B, *S]` only, c_0^2 var is added to c_n^2 (not where eta = 0).
    """
    stays, fresh = split(level, to, eta)
    along = stays / level.s
    keep, pull = Level(along, to.a - along * level.a).like(x)
    moved = keep * x + pull * x0
    if noise is None:
        return moved
    fresh = expand_like(fresh, x)
    return moved + (fresh if var is None else torch.sqrt(fresh**2 + pull**2 * var)) * noise


def split(level: Level, to: Level, eta: float | Tensor) -> tuple[Tensor, Tensor]:
    """How the new level's noise s' divides: (what stays of the old noise, fresh noise), s'^2 the sum of squares."""
    ratio = (level.a * to.s) / (to.a * level.s)  # sigma' / sigma, finite where a flow starts
    fresh = to.s * eta * torch.sqrt((1 - ratio**2).clamp(min=0))
    return torch.sqrt((to.s**2 - fresh**2).clamp(min=0)), fresh


def renoise(x: Tensor, level: Level, to: Level, noise: Tensor) -> Tensor:
    """x `[B, *S]` at `level` carried to a level with no less noise, by the forward process; needs level.a > 0."""
    grow = to.a / level.a
    add = torch.sqrt((to.s**2 - (grow * level.s) ** 2).clamp(min=0))
    grow, add = Level(grow, add).like(x)
    return grow * x + add * noise


def noise_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise in x if the clean example is x0; needs s > 0."""
    a, s = level.like(x)
    return (x - a * x0) / s
