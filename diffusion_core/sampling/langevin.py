"""Langevin steps at a fixed level, and predictor-corrector samplers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_core.sampling.loop import Denoise, Estimate, Step
from diffusion_core.sampling.transition import noise_of
from diffusion_core.schedules import Level


def langevin(rate: float) -> Step:
    """Unadjusted Langevin with step size r s^2 at a fixed level: x + (r / 2) s^2 score + sqrt(r) s noise, with r = `rate`.

    Its stationary variance is too large by about s^2 r / 4. Song & Ermon 2019 (arXiv 1907.05600), algorithm 1, uses
    r = epsilon / sigma_last^2 at every level.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        return x + level.s.to(x) * (math.sqrt(rate) * next(noise) - rate / 2 * noise_of(x, x0, level))

    return step


def signal_to_noise(snr: float = 0.16) -> float:
    """The `langevin` rate of the corrector with this signal-to-noise ratio. Song et al. 2021 (arXiv 2011.13456), algorithm 4.

    The paper divides the norm of the batch's noise by the norm of its score. Here both norms are replaced by their expected
    values, so that a sample does not depend on its batch.
    """
    return 4 * snr**2


def predictor_corrector(predictor: Step, corrector: Step) -> Step:
    """`corrector` where a timestep repeats the level before it, `predictor` elsewhere; use it on `timesteps.repeat_levels`.

    Song et al. 2021 (arXiv 2011.13456), algorithm 1.
    """

    def step(history: list[Estimate], to: Level, denoise: Denoise, noise: Iterator[Tensor]) -> Tensor:
        repeated = torch.equal(history[-1].level.sigma, to.sigma)
        return (corrector if repeated else predictor)(history, to, denoise, noise)

    return step


def keep_x(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
    """x unchanged, or x0 at the end: the predictor of annealed Langevin dynamics, where only the corrector moves x."""
    return history[-1].x0 if to.s == 0 else history[-1].x
