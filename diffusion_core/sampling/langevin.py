"""Langevin steps at one level, and how they alternate with steps between levels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_core.sampling.loop import Estimate, Step
from diffusion_core.sampling.solvers import Denoise
from diffusion_core.sampling.transition import noise_of
from diffusion_core.schedules import Level


def langevin(rate: float) -> Step:
    """x + (r / 2) s^2 score + sqrt(r) s noise at an unchanged level: unadjusted Langevin with step size r s^2.

    Its stationary variance is too large by about s^2 r / 4. Song & Ermon 2019 (arXiv 1907.05600), algorithm 1, has
    r = epsilon / sigma_last^2 at every level.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        return x + level.s.to(x) * (rate**0.5 * next(noise) - rate / 2 * noise_of(x, x0, level))

    return step


def signal_to_noise(snr: float = 0.16) -> float:
    """The rate of the corrector of Song et al. 2021 (arXiv 2011.13456), algorithms 4 and 5.

    They divide the norms of a batch's noise and score; here both have their expectation, so that samples do not depend on their
    batch and few dimensions do no harm.
    """
    return 4 * snr**2


def predictor_corrector(between: Step, at: Step) -> Step:
    """`at` where the walk dwells on a level, `between` where it moves: a predictor-corrector on a `timesteps.repeat_levels`."""

    def step(history: list[Estimate], to: Level, denoise: Denoise, noise: Iterator[Tensor]) -> Tensor:
        here = history[-1].level
        return (at if torch.equal(here.sigma, to.sigma) else between)(history, to, denoise, noise)

    return step


def keep_x(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
    """To a less noisy level without moving: annealed Langevin lets the dwelling there do the work. At the end, x0."""
    return history[-1].x0 if to.s == 0 else history[-1].x
