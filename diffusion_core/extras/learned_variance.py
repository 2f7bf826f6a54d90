"""Denoisers that know how sure they are: the variance of x0 given x, learned or measured, and its use in sampling.

An ancestral step that knows it adds `pull^2 var` to its noise, and is then exact for Gaussian data in any number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser, Posterior, Preconditioned, UncertainDenoiser
from diffusion_core.losses import Weight
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.sampling.transition import split
from diffusion_core.schedules import Level, NoiseSchedule, expand_like
from diffusion_core.targets import to_x0


class LearnedVariance(Preconditioned):
    """A denoiser whose net returns twice as many channels (dim 1): the target, and the share of the largest variance.

    The largest variance of x0 given x is that of Gaussian data of standard deviation sd. Improved DDPM's two ends (arXiv
    2102.09672, eq. 15) are share 0 and share 1.
    """

    def posterior(self, x: Tensor, level: Level, cond: Cond | None = None) -> Posterior:
        """Mean and variance of x0 given x, `[B, *S]` each."""
        y, share = self.predict(x, level, cond).chunk(2, 1)
        largest = (level.s * self.sd) ** 2 / ((level.a * self.sd) ** 2 + level.s**2)
        return Posterior(to_x0(y, x, level, self.target), expand_like(largest, x) * torch.sigmoid(share))

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        return self.posterior(x, level, cond).mean


def hybrid_loss(schedule: NoiseSchedule, total: int, strength: float = 1e-3) -> Callable[..., Tensor]:
    """L_simple + strength * L_vlb on the `total` integers of a discrete path; the bound teaches the variance alone.

    For a `LearnedVariance` denoiser. Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 16.
    """

    def loss(denoiser: LearnedVariance, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        x = level.corrupt(x0, noise)
        guess = denoiser.posterior(x, level, cond)
        t = schedule.invert(level.logsnr).round()
        before = schedule((t - 1).clamp(min=0))
        first = t == 0  # whose step ends at clean data
        to = Level(torch.where(first, 1.0, before.a), torch.where(first, 0.0, before.s))
        bound = transition_kl(x0, Posterior(guess.mean.detach(), guess.var), level, to)
        plain = weight(level).to(x0) * (guess.mean - x0).square().flatten(1).mean(1)
        return plain + strength * total * bound

    return loss


def transition_kl(x0: Tensor, guess: Posterior, level: Level, to: Level) -> Tensor:
    """KL from the true to the guessed ancestral step level -> to, a mean over dimensions, `[B]` nats.

    Where `to` is clean the true step is a point and the result is its negative log density.
    """
    stays, fresh = split(level, to, 1.0)
    pull = expand_like(to.a - stays / level.s * level.a, x0)
    true_var = expand_like(fresh**2, x0)
    var = true_var + pull**2 * guess.var + 1e-12
    square = (pull * (x0 - guess.mean)) ** 2
    kl = 0.5 * (torch.log(var / true_var.clamp(min=1e-30)) + (true_var + square) / var - 1)
    point = 0.5 * (torch.log(2 * torch.pi * var) + square / var)
    return torch.where(true_var > 0, kl, point).flatten(1).mean(1)


def analytic_variance(
    denoiser: Denoiser, timesteps: Timesteps, x0: Tensor, cond: Cond | None = None, seed: int = 0
) -> UncertainDenoiser:
    """The denoiser with the mean variance of x0 at each of the walk's levels, measured on examples x0 `[N, *S]`.

    Analytic-DPM (Bao et al. 2022, arXiv 2201.06503) with the optimal variance for a mean that need not be perfect, which is the
    mean squared error (arXiv 2206.07309, theorem 3.3). For use on that walk alone.
    """
    ids = torch.arange(len(x0), device=x0.device)
    noise = rng.normal(x0.shape[1:], rng.fold(seed, rng.Stream.VARIANCE), ids).to(x0)
    table = {}
    for level, _ in pairwise(timesteps):
        with torch.no_grad():
            table[float(level.angle)] = (denoiser(level.corrupt(x0, noise), level, cond or {}) - x0).square().mean()

    def posterior(x: Tensor, level: Level, cond: Cond) -> Posterior:
        return Posterior(denoiser(x, level, cond), table[float(level.angle)].to(x).expand_as(x))

    return posterior
