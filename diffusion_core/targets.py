"""Prediction targets. The network predicts `y = p * x0 + q * eps`, given `x = a * x0 + s * eps`.

These are two equations in two unknowns, so every prediction determines x0 and eps. They also determine the loss weight that
turns an error of x0 into an error of the prediction. Every target depends on the ratio s / a alone, so that a denoiser
returns the same estimate for (k x; k a, k s) as for (x; a, s).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_core.schedules import Level

Target = Callable[[Level], tuple[Tensor, Tensor]]


def EPS(level: Level) -> tuple[Tensor, Tensor]:
    """The noise. Ho et al. 2020 (arXiv 2006.11239)."""
    return torch.zeros_like(level.a), torch.ones_like(level.s)


def X0(level: Level) -> tuple[Tensor, Tensor]:
    """The clean example x0."""
    return torch.ones_like(level.a), torch.zeros_like(level.s)


def V(level: Level) -> tuple[Tensor, Tensor]:
    """a * eps - s * x0 with the level normalised to a^2 + s^2 = 1. Salimans & Ho 2022 (arXiv 2202.00512)."""
    norm = torch.hypot(level.a, level.s)
    return -level.s / norm, level.a / norm


def FLOW(level: Level) -> tuple[Tensor, Tensor]:
    """eps - x0, the velocity of the straight path from data to noise. Liu et al. 2023 (arXiv 2209.03003)."""
    return -torch.ones_like(level.a), torch.ones_like(level.s)


def SCORE(level: Level) -> tuple[Tensor, Tensor]:
    """The score of x / a, i.e. -eps / sigma. Song & Ermon 2019 (arXiv 1907.05600)."""
    return torch.zeros_like(level.a), -level.a / level.s


def edm(sd: float) -> Target:
    """EDM's network output for data of standard deviation sd. Karras et al. 2022 (arXiv 2206.00364), Table 1.

    EDM's c_skip, c_out and loss weight follow from p and q. With sd = 1 this target is -V.
    """

    def target(level: Level) -> tuple[Tensor, Tensor]:
        norm = torch.hypot(level.s, level.a * sd)
        return level.s / (sd * norm), -sd * level.a / norm

    return target


def det(target: Target, level: Level) -> Tensor:
    """Determinant a q - s p of the two equations; where it is 0, the prediction does not determine x0."""
    p, q = target(level)
    return level.a * q - level.s * p


def to_x0(y: Tensor, x: Tensor, level: Level, target: Target) -> Tensor:
    """The estimate of x0 that follows from the prediction y `[B, *S]` at x `[B, *S]`."""
    p, q = target(level)
    d = level.a * q - level.s * p
    skip, out = Level(q / d, level.s / d).like(x)  # divide in the level's (double) precision, then convert
    return skip * x - out * y


def to_eps(y: Tensor, x: Tensor, level: Level, target: Target) -> Tensor:
    """The estimate of the noise that follows from the prediction y at x."""
    p, q = target(level)
    d = level.a * q - level.s * p
    out, skip = Level(level.a / d, p / d).like(x)
    return out * y - skip * x


def from_x0(x0: Tensor, x: Tensor, level: Level, target: Target) -> Tensor:
    """The prediction y from which `to_x0` gives x0 at x; needs s > 0."""
    p, q = target(level)
    of_x0, of_x = Level(p - q * level.a / level.s, q / level.s).like(x)
    return of_x0 * x0 + of_x * x


def unit_weight(target: Target, level: Level) -> Tensor:
    """(det / s)^2, `[B]`: with this weight the squared error of x0 equals the squared error of the prediction."""
    return (det(target, level) / level.s) ** 2
