"""Variational diffusion models: the bound on the log-likelihood, and a learned schedule that minimises its variance.

Kingma et al. 2021 (arXiv 2107.00630).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.extras import likelihood
from diffusion_core.losses import Weight
from diffusion_core.schedules import Level, NoiseSchedule, logsnr_level


class LearnedSchedule(nn.Module):
    """A density whose log-SNR falls from `highest` to `lowest` along a learned monotone function of u.

    The function is a sum of a line and of sigmoids with positive weights. `schedule` is the same as a `NoiseSchedule`.
    """

    def __init__(self, highest: float = 13.3, lowest: float = -5.0, width: int = 32) -> None:
        super().__init__()
        self.highest, self.lowest = highest, lowest
        self.slopes = nn.Parameter(torch.full((width,), math.log(math.expm1(8.0))))
        self.offsets = nn.Parameter(torch.linspace(0, 1, width))
        self.shares = nn.Parameter(torch.full((width + 1,), -3.0))
        with torch.no_grad():
            self.shares[0] = 1.0
        self.schedule = NoiseSchedule(lambda t: logsnr_level(self.logsnr(t)), self.invert)

    def forward(self, u: Tensor) -> Level:
        level = self.schedule(u)
        return Level(level.a.detach(), level.s.detach())  # `VariationalLoss` alone trains the schedule

    def logsnr(self, t: Tensor) -> Tensor:
        """The log-SNR at t `[B]` in [0, 1], strictly decreasing."""
        low, high = self._rise(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        drop: Tensor = (self.lowest - self.highest) * (self._rise(t) - low) / (high - low)
        return self.highest + drop

    def _rise(self, t: Tensor) -> Tensor:
        share = softplus(self.shares).to(t)
        waves = torch.sigmoid(softplus(self.slopes).to(t) * (t[:, None] - self.offsets.to(t)))
        rise: Tensor = share[0] * t + waves @ share[1:] / len(self.offsets)
        return rise

    @torch.no_grad()
    def invert(self, logsnr: Tensor) -> Tensor:
        """The t with this log-SNR, `[B]`, by bisection."""
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(50):
            middle = (low + high) / 2
            noisier = self.logsnr(middle) < logsnr
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2


class VariationalLoss(nn.Module):
    """The diffusion term of the bound in nats per dimension, for a `LearnedSchedule`. The recipe's weight is not used.

    The network minimises the mean of the loss, which does not depend on the schedule between its end points. The schedule
    minimises the mean square of the loss, and thereby its variance (appendix I.2). One backward pass does both: gradients
    into the schedule are multiplied by twice the loss.
    """

    def __init__(self, schedule: LearnedSchedule) -> None:
        super().__init__()
        self._schedule = (schedule,)  # in a tuple, so that it is not registered twice: it is also the recipe's density

    def forward(
        self, denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond
    ) -> Tensor:
        schedule = self._schedule[0]
        t = schedule.invert(level.logsnr)
        logsnr = schedule.logsnr(t)
        leaf = t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(schedule.logsnr(leaf).sum(), leaf, create_graph=True)
        learned_level = logsnr_level(logsnr)
        error = (denoiser(learned_level.corrupt(x0, noise), learned_level, cond) - x0).square().flatten(1).mean(1)
        loss: Tensor = -slope.to(x0) / 2 * logsnr.exp().to(x0) * error
        for tensor in (logsnr, slope):
            register_hook: Callable[..., object] = tensor.register_hook  # not annotated in torch
            register_hook(lambda gradient: gradient * 2 * loss.detach().to(gradient))
        return loss


@torch.no_grad()
def bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    schedule: NoiseSchedule,
    seed: int = 0,
    cond: Cond | None = None,
    draws: int = 8,
    largest_logsnr: float = 14.0,
    smallest_logsnr: float = -14.0,
    decoder: likelihood.Decoder = likelihood.normal_decoder,
    levels: likelihood.LevelProposal | None = None,
) -> Tensor:
    """The variational upper bound on -log2 p(x0) / d, `[B]`, for x0 `[B, *S]` and t in [0, 1].

    The sum of the prior, diffusion and reconstruction terms (eq. 11 and 17). Continuous data need a decoder that is a density,
    as the default one is; for discrete values take one of `likelihood`. In continuous time the bound depends on the schedule
    through its ends alone, which are limited to the given log-SNRs. The diffusion term is therefore estimated at `draws`
    stratified levels per example, whose log-SNR is uniform or follows `levels` (`likelihood.important_levels`), and with a
    control variate, so that its variance is small for every schedule. `likelihood.mean_and_error` gives the standard error.
    """
    lowest, highest = likelihood.log_snr_ends(schedule, largest_logsnr, smallest_logsnr)
    proposal = levels or likelihood.even_levels(lowest, highest)
    ids = torch.arange(len(x0), device=x0.device)
    flat = x0.flatten(1).double()
    a1, s1 = logsnr_level(torch.tensor(lowest, dtype=torch.float64))
    prior = 0.5 * (s1**2 + (a1 * flat) ** 2 - 1 - torch.log(s1**2)).mean(1)
    last = logsnr_level(torch.tensor(highest, dtype=torch.float64))
    noise = rng.normal(x0.shape[1:], (seed, 4), ids).to(x0)
    if decoder is likelihood.normal_decoder:  # its mean is known
        reconstruction = 0.5 * (math.log(2 * math.pi) - highest + 1) + torch.zeros_like(prior)
    else:
        x = last.corrupt(x0, noise)
        reconstruction = -decoder(x0, x, last, denoiser(x, last, cond or {})).double() / flat.shape[1]
    total = torch.zeros_like(prior)
    offset = rng.uniform((), (seed, 0), ids)
    for draw in range(draws):
        logsnr, density, control = proposal.draw((offset + draw) / draws)
        level = logsnr_level(logsnr)
        noise = rng.normal(x0.shape[1:], (seed, 1, draw), ids).to(x0)
        error = (denoiser(level.corrupt(x0, noise), level, cond or {}) - x0).double().square().flatten(1).mean(1)
        total += likelihood.integrand(error, logsnr, noise, control) / density
    return (prior + reconstruction + total / draws) / math.log(2)
