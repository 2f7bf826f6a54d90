"""Denoisers that also return the variance of x0 given x, either learned or measured.

With this variance an ancestral step (`transition` with eta = 1) is exact for Gaussian data in any number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser, Posterior, Preconditioned, UncertainDenoiser
from diffusion_core.error_curve import ErrorCurve
from diffusion_core.losses import Weight
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.sampling.transition import split_noise
from diffusion_core.schedules import Level, NoiseSchedule, expand_like
from diffusion_core.targets import to_x0


class LearnedVariance(Preconditioned):
    """A denoiser whose network returns twice as many channels: the target, and the share of the log variance.

    Channels are the dimension of which the network returns twice as many.

    The noise variance of an ancestral step is interpolated in logarithms between beta_tilde (share 0), which is exact if x0 is
    known, and the variance for Gaussian data of standard deviation sd (share 1), which is beta for sd = 1. A sigmoid keeps the
    share in [0, 1]. Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15.
    """

    def posterior(self, x: Tensor, level: Level, cond: Cond | None = None) -> Posterior:
        """Mean of x0 given x, its largest variance, and the share, `[B, *S]` each."""
        both = self.predict(x, level, cond)
        channels = next(i for i, (n, m) in enumerate(zip(both.shape, x.shape, strict=True)) if n != m)
        y, share = both.chunk(2, channels)
        largest = (level.s * self.sd) ** 2 / ((level.a * self.sd) ** 2 + level.s**2)
        x0 = to_x0(y, x, level, self.target)
        return Posterior(x0, expand_like(largest, x).expand_as(x), torch.sigmoid(share))

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        return self.posterior(x, level, cond).mean


def hybrid_loss(schedule: NoiseSchedule, total: int, strength: float = 1e-3) -> Callable[..., Tensor]:
    """L_simple + strength * L_vlb on the integers t < `total` of a discrete schedule, for a `LearnedVariance` denoiser.

    L_vlb trains the variance only. Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 16.
    """

    _, least = split_noise(schedule(_tensor(1.0)), schedule(_tensor(0.0)), 1.0)

    def loss(denoiser: LearnedVariance, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        x = level.corrupt(x0, noise)
        guess = denoiser.posterior(x, level, cond)
        t = schedule.invert(level.logsnr).round()
        before = schedule((t - 1).clamp(min=0))
        last_step = t == 0  # it ends at clean data
        to = Level(torch.where(last_step, 1.0, before.a), torch.where(last_step, 0.0, before.s))
        bound = transition_kl(x0, guess._replace(mean=guess.mean.detach()), level, to, float(least) ** 2)
        plain = weight(level).to(x0) * (guess.mean - x0).square().flatten(1).mean(1)
        return plain + strength * total * bound

    return loss


def transition_kl(x0: Tensor, guess: Posterior, level: Level, to: Level, min_var: float = 1e-12) -> Tensor:
    """KL divergence of the model's ancestral step level -> to from the true one given x0, `[B]` nats per dimension.

    If `to` is clean, the true step is deterministic and the result is the negative log density of x0 under the model's step.
    `min_var` is the smallest variance from which the model's is interpolated; it matters in this last step only.
    """
    kept, added = split_noise(level, to, 1.0)
    c_0 = expand_like(to.a - kept / level.s * level.a, x0)
    true_var = expand_like(added**2, x0)
    log_var = torch.log(true_var + c_0**2 * guess.var + 1e-12)
    if guess.share is not None:
        log_var = guess.share * log_var + (1 - guess.share) * torch.log(true_var.clamp(min=min_var))
    var = log_var.exp()
    square = (c_0 * (x0 - guess.mean)) ** 2
    kl = 0.5 * (log_var - torch.log(true_var.clamp(min=1e-30)) + (true_var + square) / var - 1)
    point = 0.5 * (math.log(2 * math.pi) + log_var + square / var)
    return torch.where(true_var > 0, kl, point).flatten(1).mean(1)


def analytic_variance(
    denoiser: Denoiser, timesteps: Timesteps, x0: Tensor, cond: Cond | None = None, seed: int = 0
) -> UncertainDenoiser:
    """The denoiser with the mean squared error of x0 at each of the timesteps, measured on examples x0 `[N, *S]`, as variance.

    Analytic-DPM (Bao et al. 2022, arXiv 2201.06503). For an imperfect denoiser the mean squared error is the optimal variance
    (arXiv 2206.07309, theorem 3.3). The result can only be evaluated at these timesteps.
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


def measured_variance(denoiser: Denoiser, errors: ErrorCurve) -> UncertainDenoiser:
    """The denoiser with its mean squared error as variance, as `analytic_variance`, from errors measured at other levels."""

    def posterior(x: Tensor, level: Level, cond: Cond) -> Posterior:
        return Posterior(denoiser(x, level, cond), expand_like(errors(level), x).expand_as(x))

    return posterior


def _tensor(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)
